"""Lets variants share compiled kernels on disk although their kernels have profiler events.

With such events, a kernel's C++ holds its name, which counts the graphs and kernels of the process: no two compiles
would ever give the same text, and each variant, ratio and phase would build all its kernels anew, for minutes. Here the
counters are taken out of the names. Nothing else of the code changes.

Contract: within `shared_kernels()` equal kernels are compiled once for all processes that share a cache folder.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch._inductor.async_compile import AsyncCompile

_EVENT = re.compile(r'(RAIIAtenRecordFunctionHandle) record_\w+\("(?:graph_\d+_)?(\w+?)(?:_\d+)?"')


def without_counters(source: str) -> str:
    """The same C++, with an event that is called after what was fused alone."""
    return _EVENT.sub(r'\1 record_kernel_("\2"', source)


@contextlib.contextmanager
def shared_kernels() -> Iterator[None]:
    """Compile inside of the `with` block."""
    compile_kernel = AsyncCompile.cpp_pybinding

    def shared(self: AsyncCompile, argtypes: list[str], source_code: str) -> Any:
        return compile_kernel(self, argtypes, without_counters(source_code))

    with mock.patch.object(AsyncCompile, "cpp_pybinding", shared):
        yield
