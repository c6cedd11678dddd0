# SPDX-License-Identifier: Apache-2.0
"""What all processes of the tests do to spend less time on what no test is about."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.one_build import kernels_in_one_build

QUICK = Path(__file__).parent / "quick" / "g++"
"""Inductor knows compilers by their names."""


def held_to_all() -> bool:
    """Whether long tests are held to all they have, as before a release, or to a part, as with each change."""
    return os.environ.get("FARSKIP_TESTS") == "deep"


def examples(number: int) -> int:
    """How many generated examples a property is held to: all of them before a release, half with each change."""
    return number if held_to_all() else -(-number // 2)


def collect_rarely() -> None:
    """What is imported stays, and need not be walked; a compile makes many objects and little garbage."""
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)


def trace_nothing() -> None:
    """Keep pytest off torch's structured trace, which is written, each graph in full, if its logger has a handler.

    pytest puts handlers on every logger that does not propagate.
    """
    from torch._logging._internal import trace_log

    trace_log.propagate = True
    if "TORCH_TRACE" not in os.environ:
        trace_log.handlers.clear()  # torch's own takes itself out at the first record, which would propagate


def share_headers(cache: Path) -> None:
    """Give a compile cache that is to be empty the headers that this machine has precompiled.

    No test is about them, and they take the compiler 15 s for each new cache.
    """
    from torch._inductor import codecache

    headers = getattr(codecache, "_HEADER_DIR", None)  # a private name: without it the compiler takes its time
    if headers is not None:
        Path(headers).mkdir(parents=True, exist_ok=True)
        (cache / Path(headers).name).symlink_to(headers)


@contextmanager
def scalar_kernels() -> Iterator[None]:
    """Within the block Inductor vectorizes nothing, the kernels of a program are compiled as one file, and that with
    `-O1`, which takes two thirds of the time of `-O3`.

    For tests of which kernels there are, of when they run and on what, and of results up to rounding. Kernels as users
    get them run in `tests/test_backend.py`, `tests/properties/test_architectures.py` and in the tests of the pages.
    """
    from torch._inductor import config

    with config.patch({"cpp.simdlen": 1, "cpp.cxx": (str(QUICK),)}), kernels_in_one_build():
        yield


def link_quickly() -> None:
    """Let the compiler of each process started from here on link with gold, where that is installed.

    Kernels are small, and linked against libraries of some hundred megabytes: the usual linker takes a quarter of the
    time of a build.
    """
    gold = shutil.which("ld.gold")
    if gold is None or "COMPILER_PATH" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="farskip-linker-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, "ld").symlink_to(gold)
    os.environ["COMPILER_PATH"] = folder


def probe_once() -> None:
    """Set what every process started from here on need not find out or start again.

    Inductor compiles and loads a probe for each instruction set that the processor names, in every process; if all of
    them pass here, they pass there. And its pool of compile workers serves Triton, which no test on a CPU uses.
    """
    os.environ["TORCH_WARM_POOL"] = "0"
    from torch._inductor import config, cpu_vec_isa

    with config.patch("cpp.vec_isa_ok", True):
        named = cpu_vec_isa.valid_vec_isa_list.__wrapped__()
    if named and all(map(bool, named)):
        os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"
