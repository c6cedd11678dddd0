# SPDX-License-Identifier: Apache-2.0
"""The collectives that the names of kernels, copies, operators and ranges state.

In:    names of kernels and copies, as CUPTI, roctracer or Nsight Systems report them; names of operators, of titles of
       works (`nccl:all_to_all`), of collectives in `record_param_comms`, and of NCCL's own NVTX ranges.
Out:   the statement of the name alone. `launches.py` knows what surrounds a launch.
Never: walks a trace; takes a fused kernel of Inductor for communication, although such a kernel is named after all
       operators that it replaced, `triton_poi_fused_add_all_reduce_4`.

Algorithm of `work_of`:
1. A copy from one GPU to another is an exchange by copy engines.
2. The function of a kernel is its name without return type, parameters and template arguments, demangled (HIP).
3. The first row of `gpu_families.py` that matches the function decides. Without a match, the kernel computes.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from farskip_compile.measure.profiling.events import is_fused_kernel
from farskip_compile.measure.profiling.gpu_families import FAMILIES, KernelPattern, Trait

PEER_COPY = "peer_copy"
SEND_RECV = "send_recv"

_ROWS = [(re.compile(row.pattern), row) for family in FAMILIES for row in family.rows]
_PEER_COPY = re.compile(r"Memcpy (PtoP|P2P|<?unknown)\b")
"""Matches copies of unknown kind, too: they may lead to another GPU."""
_UNNAMED = re.compile(r"\(anonymous namespace\)::|<unnamed>::")
"""An anonymous namespace, as c++filt and Nsight Systems write it."""
_MANGLED = re.compile(r"_ZN?K?(?=\d)")
_LENGTH = re.compile(r"\d{1,3}")
_WAITS_FOR_TILES = "PersistentAsyncInputScheduler"
"""A template argument of CUTLASS kernels whose tiles arrive while they run (torch's symm_mem, AsyncMM.cu)."""

_OWNERS = re.compile(r"(?:c10d|_?c10d_functional(?:_autograd)?|symm_mem)::(?P<what>\w+)|nccl(?P<call>[A-Z]\w*)")
"""Operators of PyTorch that communicate, and NCCL's functions: its NVTX ranges have their names (`__func__`, by
NVTX3_FUNC_WITH_PARAMS in src/collectives.cc)."""
_TITLE = re.compile(r"nccl:(?P<what>\w+)")
"""The title of a work of ProcessGroupNCCL: `nccl:all_to_all`, `nccl:_all_gather_base`, `nccl:send 0->1`,
`nccl:coalesced` (torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp)."""
_SAYS_NOTHING = frozenset(
    ["group_start", "group_end", "wait_tensor", "wait", "init", "monitored_barrier", "check_for_nan"]
)

_KINDS = {
    **dict.fromkeys(["alltoall", "alltoall_base", "all_to_allv", "allto_all", "all_to_all_single"], "all_to_all"),
    **dict.fromkeys(["allgather_base", "all_gather_base", "allgather_into_tensor"], "all_gather_into_tensor"),
    **dict.fromkeys(["reduce_scatter_base", "reduce_scatter_tensor"], "reduce_scatter_tensor"),
    **{f"all{what}": f"all_{what}" for what in ("reduce", "gather", "reduce_coalesced", "gather_coalesced")},
    "allgather_into_tensor_coalesced": "all_gather_into_tensor_coalesced",
    "recv_any_source": "recv",
    "isend": "send",
    "irecv": "recv",
    "batch_p2p_ops": "batch_isend_irecv",
}
"""Other names of a collective, of operators, in `record_param_comms` and in titles, and the name that reports use."""
_HOW = re.compile(r"^(?:nvshmem_|multimem_|one_shot_|two_shot_)+(?=all_|reduce)|(?:_copy)?_out$|_copy$|_impl$")
"""Affixes that operators of `symm_mem::` and functions of RCCL add to the name of the collective."""


class GpuWork(NamedTuple):
    """The communication of a kernel or a copy."""

    kind: str
    traits: Trait


class LaunchName(NamedTuple):
    """The collective that the name of an operator or a range states."""

    kind: str
    owns: bool
    """True if all work that the operator launches itself belongs to the collective."""


@lru_cache(maxsize=65536)
def work_of(name: str) -> GpuWork | None:
    """Return the communication of the kernel or copy `name`; None if the name states none."""
    if _PEER_COPY.match(name):  # 1
        return GpuWork(PEER_COPY, Trait.VAGUE | Trait.LOOSE)
    if is_fused_kernel(name):
        return None
    if _WAITS_FOR_TILES in name:
        return GpuWork("all_gather_fused", Trait.FUSED | Trait.LOOSE)
    function = function_of(name)  # 2
    for pattern, row in _ROWS:  # 3
        if match := pattern.search(function):
            return _work(row, match)
    return None


def function_of(name: str) -> str:
    """Return `deep_ep::intranode::combine` for `void deep_ep::intranode::combine<__nv_bfloat16, 8>(void*)`."""
    if start := _MANGLED.match(name):
        return "::".join(_parts(name, start.end()))
    bare = _UNNAMED.sub("", name).removeprefix("void ")
    return re.split(r"[<(]", bare, maxsplit=1)[0].strip()


def _parts(name: str, place: int) -> list[str]:
    """Return the names in a mangled name, each of which follows its length; only the first, if there is no scope."""
    parts: list[str] = []
    while (digits := _LENGTH.match(name, place)) and (not parts or name.startswith("_ZN")):
        place = digits.end() + int(digits[0])
        parts.append(name[digits.end() : place])
    return [part for part in parts if not part.startswith("_GLOBAL__N")]


def _work(row: KernelPattern, match: re.Match[str]) -> GpuWork | None:
    return None if row.kind is None else GpuWork(kind_of(match.expand(row.kind)), row.traits)


@lru_cache(maxsize=4096)
def launched_by(name: str) -> LaunchName | None:
    """Return the collective that the operator or range `name` launches; None if the name states none.

    `c10d::alltoall_base_`, `nccl:all_to_all` and `ncclAlltoAll` give `all_to_all`.
    """
    if match := _OWNERS.match(name):
        kind, owns = kind_of(match["what"] or match["call"]), True
    elif match := _TITLE.match(name):
        kind, owns = kind_of(match["what"]), False
    else:
        return None
    return None if kind in _SAYS_NOTHING else LaunchName(kind, owns)


@lru_cache(maxsize=4096)
def kind_of(collective: str) -> str:
    """Return the name that reports use: `all_to_all` for `all_to_allv`, `alltoall_base_` and `AlltoAll`."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", collective.strip("_")).lower()
    plain = _HOW.sub("", snake)
    return _KINDS.get(plain, plain)
