"""Read a `Program` off Inductor's kernels after fusion, for the same scheduler.

In:    the kernels of one graph in an order that respects their dependences; costs.
Out:   the program; task i is kernel i. Or an `UnsupportedPatternError`, if the order it comes in breaks a dependence.
Never: changes a kernel.

A kernel needs whatever makes a buffer that it depends on; Inductor's own dependences already hold control
dependences, the order of writes, and that memory of a collective in flight is read by its wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import fx

from farskip_compile._compat import inductor
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import ops
from farskip_compile.passes.residual.tags import terms_of
from farskip_compile.passes.schedule.program import Buffer, Program, Role, Task


class KernelEstimate(Protocol):
    """What the adapter asks of a cost model."""

    def collective(self, node: fx.Node) -> float:
        """Seconds of a launch on its channel."""

    def link(self, node: fx.Node) -> str:
        """The wires that a launch uses, by a name that all ranks give them."""

    def interference(self, node: fx.Node) -> float:
        """Part by which compute takes longer while a launch is in flight."""

    def kernel(self, parts: list[tuple[bool, list[fx.Node]]], traffic: int) -> float:
        """Seconds of a kernel: what was fused into it, and the bytes it moves."""


def read_kernels(kernels: Sequence[inductor.Kernel], estimate: KernelEstimate, inputs: int = 0) -> Program:
    """Read the program of `kernels`; `inputs` are the bytes of what it is given and may not free."""
    maker = {name: i for i, kernel in enumerate(kernels) for name in inductor.kernel_makes(kernel)}
    tasks: list[Task] = []
    for i, kernel in enumerate(kernels):
        needed = {maker[name] for name in inductor.kernel_needs(kernel) if name in maker} - {i}
        needs = tuple(sorted(needed))
        parts = inductor.kernel_parts(kernel)
        name = inductor.kernel_name(kernel)
        if needs and needs[-1] > i:
            raise _out_of_order(name, inductor.kernel_name(kernels[needs[-1]]), parts)
        launch = _launch_node(parts) if inductor.is_launch_kernel(kernel) else None
        awaited = _awaited(tasks, needs) if inductor.is_wait_kernel(kernel) else None
        if launch is not None:
            group = ops.process_group(launch)
            seconds, link, slows = estimate.collective(launch), estimate.link(launch), estimate.interference(launch)
            terms = terms_of(launch)
            tasks.append(Task(name, needs, seconds, Role.LAUNCH, channel=group, link=link, slows=slows, terms=terms))
        elif awaited is not None:
            tasks.append(Task(name, needs, 0.0, Role.WAIT, launch=awaited))
        else:
            tasks.append(Task(name, needs, estimate.kernel(parts, inductor.kernel_traffic(kernel))))
    buffers = [Buffer(size, made, tuple(users), kept) for size, made, users, kept in inductor.kernel_buffers(kernels)]
    return Program(tuple(tasks), (*buffers, Buffer(inputs, kept=True)))


def _out_of_order(reader: str, writer: str, parts: list[tuple[bool, list[fx.Node]]]) -> UnsupportedPatternError:
    node = next((node for _, origins in parts for node in origins), None)
    return UnsupportedPatternError(
        f"Inductor would run the kernel {reader} in front of {writer}, which writes what it reads, in place",
        way_out="torch 2.13 and later can be told to keep the order: update torch, or write that tensor out of place",
        where=ops.where(node) if node is not None else None,
    )


def _launch_node(parts: list[tuple[bool, list[fx.Node]]]) -> fx.Node | None:
    """The graph node of a launch. Inductor's first origin may be its wait."""
    return next((node for _, origins in parts for node in origins if ops.is_collective(node)), None)


def _awaited(tasks: Sequence[Task], needs: tuple[int, ...]) -> int | None:
    """The launch behind a wait: the newest one among its needs, through the kernels that take results apart."""
    for need in reversed(needs):
        if tasks[need].role is Role.LAUNCH:
            return need
    for need in reversed(needs):
        for further in reversed(tasks[need].needs):
            if tasks[further].role is Role.LAUNCH:
                return further
    return None
