# SPDX-License-Identifier: Apache-2.0
"""Whether a program calls its kernels in the order that was decided.

In:    within `watching()`: compiles of this package's backend. Then the source of a program, and what was decided.
Out:   `watching` gives a list: for each graph its kernels in the order that `KernelPass` returned, the last word on it.
       `differences`: what the program does otherwise, in words; empty if it is that order, call by call.
Never: asks anything that comes later than that pass, such as Inductor's list of kernels after it.

Algorithm:
1. Note of each kernel: whether it is a launch, a wait or something else, and the buffers that it makes or writes to.
   Some are no call of the device: views, parts of a result, sizes that the host reads or writes.
2. Read the calls off the program, one a line, with the letter of each.
3. Each kernel is the next call: that names one of its buffers, and is of its kind. What was combined may be several,
   as long as each names a buffer that those before it do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch._inductor import ir
from torch._inductor.scheduler import NopKernelSchedulerNode

from farskip_compile._compat import inductor
from farskip_compile.compiler.inductor_passes.after_fusion import KernelPass
from farskip_compile.records.announcement import announcement
from tests.gpu.programs import calls_of


@dataclass(frozen=True)
class Decided:
    """A kernel that is a call."""

    name: str
    kind: str
    """`L`, `W`, or empty."""
    buffers: frozenset[str]
    """One of them is in the line that calls it; of our announcement, which writes none, its own name."""


@contextmanager
def watching() -> Iterator[list[list[Decided]]]:
    """See the module's contract."""
    found: list[list[Decided]] = []
    plain = KernelPass.__call__

    def watched(self: KernelPass, kernels: list[Any]) -> list[Any]:
        ordered = plain(self, kernels)
        found.append([_noted(kernel) for kernel in ordered if _is_call(kernel)])
        return ordered

    with mock.patch.object(KernelPass, "__call__", watched):
        yield found


def differences(code: str, decided: list[Decided]) -> list[str]:
    """See the module's contract."""
    calls = [(letter, line, {*re.findall(r"\w+", line)}) for letter, line in calls_of(code)]  # 2
    place, found = 0, []
    for kernel in decided:  # 3
        letter, line, names = calls[place] if place < len(calls) else ("", "the end", set())
        if (letter if letter in "LW" else "") != kernel.kind or kernel.buffers.isdisjoint(names):
            found.append(f"{kernel.name} ({kernel.kind or 'compute'}) was to come where there is: {line[:160]}")
        place += 1
        left = kernel.buffers - names if kernel.kind == "" else set()
        while place < len(calls) and left & calls[place][2]:  # nobody reads a buffer that nobody has written
            left = left - calls[place][2]
            place += 1
    return found + [f"called, and not decided: {line[:160]}" for _, line, _ in calls[place:]]


def _noted(kernel: Any) -> Decided:  # 1
    if inductor.calls(kernel, announcement()):
        return Decided(inductor.kernel_name(kernel), "", frozenset({"announce"}))
    kind = "L" if inductor.is_launch_kernel(kernel) else "W" if inductor.is_wait_kernel(kernel) else ""
    operations = [part.node for part in kernel.get_nodes()]
    results = [buffer for one in operations for buffer in one.get_outputs()]
    written = [name for one in (*operations, *results) for name in one.get_mutation_names()]
    buffers = [*inductor.kernel_makes(kernel), *written]  # a wait counts as a write to what it waits for
    return Decided(inductor.kernel_name(kernel), kind, frozenset(buffers))


def _is_call(kernel: Any) -> bool:
    if inductor.is_launch_kernel(kernel) or inductor.is_wait_kernel(kernel):
        return True
    silent = (ir.MultiOutput, ir.DynamicScalar, ir.AssertScalar)
    device = kernel.get_device()
    if device is not None and device.type == "cpu":
        return False
    return not isinstance(kernel, NopKernelSchedulerNode) and not isinstance(kernel.node, silent)
