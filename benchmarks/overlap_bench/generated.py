"""Inductor's generated code: what it shows of overlap, and how variants share compiled kernels.

Contract: `facts` reads the text of the code that runs, of every compiled graph with collectives, and trusts nothing
that a pass reports. Heavy kernels are library calls: matrix products and attention. Fused loops do not count. Within
`shared_kernels()` equal kernels are compiled once for all processes that share a cache folder.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch._inductor.async_compile import AsyncCompile
from torch._inductor.graph import GraphLowering

_LAUNCH = re.compile(r"^\s*(?:(\w+) = )?torch\.ops\._c10d_functional\.(?!wait_tensor)\w+\.\w+\((\w+)")
_WAIT = re.compile(r"^\s*(?:\w+ = )?torch\.ops\._c10d_functional\.wait_tensor\.default\((\w+)")
_HEAVY = re.compile(
    r"extern_kernels\.(?:mm|bmm|addmm|baddbmm|_mm_plus_mm|convolution|_grouped_mm)\w*\("
    r"|torch\.ops\.(?:aten|mkl|mkldnn)\.\w*(?:mm|attention|linear|matmul|convolution)\w*(?:\.\w+)?\("
)
_EVENT = re.compile(r'(RAIIAtenRecordFunctionHandle) record_\w+\("(?:graph_\d+_)?(\w+?)(?:_\d+)?"')


@dataclass(frozen=True)
class CodeFacts:
    """The collectives in all graphs of one variant."""

    collectives: int
    covered: int
    """Collectives with a heavy kernel between launch and wait."""
    heavy: int
    """Heavy kernels between launch and wait, summed over the collectives."""


@contextlib.contextmanager
def captured_code() -> Iterator[list[str]]:
    """The code of every graph that Inductor compiles or loads inside the `with` block, in order."""
    found: list[str] = []

    def save(code: str) -> None:
        if code not in found:
            found.append(code)

    with mock.patch.object(GraphLowering, "save_output_code", save):
        yield found


def flights(code: str) -> list[int]:
    """Heavy kernels between launch and wait, for each collective of one graph in launch order; one that is never waited
    for counts to the end."""
    open_at: dict[str, tuple[int, int]] = {}
    found: list[int] = []
    heavy = 0
    for line in code.splitlines():
        if (launch := _LAUNCH.match(line)) is not None:
            result, argument = launch.groups()
            # in-place collectives are waited for by the name of their input
            name = argument if result is None or "_.default(" in line else result
            open_at[name] = (len(found), heavy)
            found.append(0)
        elif (wait := _WAIT.match(line)) is not None:
            if wait[1] in open_at:
                index, before = open_at.pop(wait[1])
                found[index] = heavy - before
        elif _HEAVY.search(line):
            heavy += 1
    for index, before in open_at.values():
        found[index] = heavy - before
    return found


def facts(codes: Sequence[str]) -> CodeFacts:
    """Several graphs together."""
    found = [heavy for code in codes for heavy in flights(code)]
    return CodeFacts(len(found), sum(heavy > 0 for heavy in found), sum(found))


def without_counters(source: str) -> str:
    """The same C++, with its profiler event named only after what was fused.

    The event's name counts the graphs and kernels of the process. No two compiles would give the same text, and each
    variant, ratio and phase would build all its kernels anew, for minutes.
    """
    return _EVENT.sub(r'\1 record_kernel_("\2"', source)


@contextlib.contextmanager
def shared_kernels() -> Iterator[None]:
    """Compile inside the `with` block."""
    compile_kernel = AsyncCompile.cpp_pybinding

    def shared(self: AsyncCompile, argtypes: list[str], source_code: str) -> Any:
        return compile_kernel(self, argtypes, without_counters(source_code))

    with mock.patch.object(AsyncCompile, "cpp_pybinding", shared):
        yield
