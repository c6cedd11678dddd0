# SPDX-License-Identifier: Apache-2.0
"""The role of a profiler event on the host, by its category and name; `gpu_names.py` answers for work on a GPU.

Contract: pure questions about names. The names are those observed from `torch.profiler` on CPU with gloo (torch 2.13),
and those documented for CUDA and HIP. An ambiguous name gets the answer that counts less compute: exposure may come out
too large, never too small. `lanes.py` decides by the events around and inside an event, `EventRole` by its name alone.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache


class EventRole(Enum):
    """The role of an operator event on a CPU thread."""

    COMPUTE = "compute"
    """An operator of PyTorch (`aten::mm`), or a fused kernel of Inductor (`graph_0_cpp_fused_gelu_1`)."""
    LEAF = "leaf"
    """Compute unless another operator runs inside: one of another namespace (`mylib::permute`), maybe Python."""
    LAUNCH = "launch"
    """A launch of a collective, or a part of one: not compute."""
    WAIT = "wait"
    """A call that blocks the thread until a collective is done."""
    GLUE = "glue"
    """Anything else: Dynamo's cache lookups, compiled regions, autograd's nodes, `record_function` ranges."""


COMMUNICATION_OPS = frozenset(
    ["c10d", "_c10d_functional", "c10d_functional", "_c10d_functional_autograd", "_dtensor", "symm_mem"]
)
NATIVE_OPS = frozenset(["aten", "prims", "quantized", "mkldnn", "mkl", "onednn", "torchvision"])
GLUE_OPS = frozenset(["autograd", "torch", "profiler", "rpc", "jit"])
LAUNCH_RECORD = "record_param_comms"
"""The event that c10d puts around each launch, with the collective's name, group and size among its arguments
(torch/csrc/distributed/c10d/ParamCommsUtils.hpp; kineto's output_json.cpp repeats them at the kernel)."""

_OPERATOR = re.compile(r"(\w+)::([\w.]+)\Z")
_FUSED_KERNEL = re.compile(r"(graph_\d+_)?(cpp|triton)_\w+\Z|aoti_torch_\w+\Z")
_CPU_COLLECTIVE = re.compile(r"(gloo|mpi|ucc|ccl|oneccl):(\w+)\Z")
_LAYER = re.compile(r"(?<![A-Za-z0-9])(?:layers?|blocks?)[ ._:=#/\[-]*(\d{1,6})(?!\d|\s*[-:]\s*\d)", re.IGNORECASE)

GPU_CATEGORIES = frozenset(["kernel", "gpu_memcpy", "gpu_memset", "Kernel", "Memcpy", "Memset"])
COPY_CATEGORIES = frozenset(["gpu_memcpy", "gpu_memset", "Memcpy", "Memset"])
OPERATOR_CATEGORIES = frozenset(["cpu_op", "Operator"])
ANNOTATION_CATEGORIES = frozenset(["user_annotation"])
HOST_CATEGORIES = OPERATOR_CATEGORIES | ANNOTATION_CATEGORIES
GPU_ANNOTATION_CATEGORIES = frozenset(["gpu_user_annotation"])
RUNTIME_CATEGORIES = frozenset(["cuda_runtime", "cuda_driver", "Runtime"])

COMPILED_REGION = "## Call CompiledFxGraph"
"""The beginning of the mark around a run of code that Inductor compiled."""

LOOSE_KINDS = frozenset(
    ["send", "recv", "send_recv", "batch_isend_irecv", "broadcast", "reduce", "gather", "scatter"]
) | {"collective", "coalesced"}
"""Kinds that one rank may finish before another begins; `collective` and `coalesced` may be one of these."""

LAUNCH_KINDS: dict[str, tuple[str, str]] = {
    "alltoall_base_": ("all_to_all_single", "all_to_all"),
    "alltoall_": ("all_to_all", "all_to_all"),
    "allreduce_": ("all_reduce", "all_reduce"),
    "allreduce_coalesced_": ("all_reduce_coalesced", "all_reduce"),
    "allgather_": ("all_gather", "all_gather"),
    "allgather_coalesced_": ("all_gather_coalesced", "all_gather"),
    "_allgather_base_": ("all_gather_into_tensor", "all_gather"),
    "allgather_into_tensor_coalesced_": ("all_gather_into_tensor", "all_gather"),
    "reduce_scatter_": ("reduce_scatter", "reduce_scatter"),
    "_reduce_scatter_base_": ("reduce_scatter_tensor", "all_reduce"),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter_tensor", "all_reduce"),
    **{f"{kind}_": (kind, kind) for kind in ("broadcast", "reduce", "gather", "scatter", "recv")},
    "barrier": ("barrier", "barrier"),
    "send": ("send", "send"),
    "recv_any_source_": ("recv", "recv"),
}
"""A map from each operator of `c10d` to the collective that it launches, and gloo's name of the work.

A reduce-scatter on gloo is an all-reduce, of which each rank keeps a part.
"""


@lru_cache(maxsize=65536)
def role(name: str) -> EventRole:
    """Return the role of the operator event `name` on a CPU thread."""
    if name == LAUNCH_RECORD or _CPU_COLLECTIVE.match(name):
        return EventRole.LAUNCH
    if _FUSED_KERNEL.match(name):
        return EventRole.COMPUTE
    match = _OPERATOR.match(name)
    if match is None or match[1] in GLUE_OPS:
        return EventRole.GLUE
    if match[1] in COMMUNICATION_OPS:
        return EventRole.WAIT if match[2] == "wait_tensor" else EventRole.LAUNCH
    return EventRole.COMPUTE if match[1] in NATIVE_OPS else EventRole.LEAF


@lru_cache(maxsize=65536)
def is_fused_kernel(name: str) -> bool:
    """Return whether `name` is a kernel that Inductor made."""
    return _FUSED_KERNEL.match(name) is not None


@lru_cache(maxsize=65536)
def launched_kind(name: str) -> tuple[str, str] | None:
    """Return the collective that the operator `name` launches, and gloo's name of the work; None for others."""
    return LAUNCH_KINDS.get(name[len("c10d::") :]) if name.startswith("c10d::") else None


@lru_cache(maxsize=65536)
def cpu_collective(name: str) -> str | None:
    """Return the kind of the CPU collective that the event `name` is: `all_to_all` for `gloo:all_to_all`."""
    match = _CPU_COLLECTIVE.match(name)
    return match[2] if match is not None else None


@lru_cache(maxsize=65536)
def layer_of(annotation: str) -> int | None:
    """Return the layer that a `record_function` range names (`layers.3.mlp`, `block_3`); None for none or several."""
    found = set(_LAYER.findall(annotation))
    return int(found.pop()) if len(found) == 1 else None
