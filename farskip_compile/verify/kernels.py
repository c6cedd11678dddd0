# SPDX-License-Identifier: Apache-2.0
"""Proof of the final order: the kernels that run are those that Inductor has made, each after what it needs.

Contract: looks at the dependences that Inductor itself keeps, not at the program that the order was made from; changes
nothing. Linear.

What must hold:
1. The kernels are those from before, each once.
2. Each kernel comes after those that make what it needs.
3. The collectives of each process group, those that block included, are launched in the order they had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from farskip_compile._compat import inductor
from farskip_compile.errors import VerificationError, Where
from farskip_compile.passes.graph import comms


def verify_kernels(before: Sequence[inductor.Kernel], after: Sequence[inductor.Kernel]) -> None:
    """Check that `after` holds the kernels of `before` in an order that may replace the old one.

    Raises:
        VerificationError: naming the first kernel that is not as it must be, and why.
    """
    place = {kernel: index for index, kernel in enumerate(after)}
    _law_1_kernels(before, after, place)
    _law_2_needs(after, place)
    _law_3_launches(before, place)


def _law_1_kernels(
    before: Sequence[inductor.Kernel], after: Sequence[inductor.Kernel], place: Mapping[inductor.Kernel, int]
) -> None:
    for kernel in before:
        if kernel not in place:
            raise _error(kernel, "it no longer runs")
    if not len(before) == len(after) == len(place):
        raise _error(after[-1], f"{len(before)} kernels were to run, each once, and now there are {len(after)}")


def _law_2_needs(after: Sequence[inductor.Kernel], place: Mapping[inductor.Kernel, int]) -> None:
    maker = {name: kernel for kernel in after for name in inductor.kernel_makes(kernel)}
    for kernel in after:
        for name in inductor.kernel_needs(kernel):
            if name in maker and place[maker[name]] > place[kernel]:
                raise _error(kernel, f"it comes before {inductor.kernel_name(maker[name])}, whose {name!r} it needs")


def _law_3_launches(before: Sequence[inductor.Kernel], place: Mapping[inductor.Kernel, int]) -> None:
    last: dict[str, inductor.Kernel] = {}
    for kernel in before:
        parts = inductor.kernel_parts(kernel)
        if inductor.is_launch_kernel(kernel):
            launch = next((node for _, nodes in parts for node in nodes if comms.is_collective(node)), None)
        else:
            launch = next(
                (nodes[0] for extern, nodes in parts if extern and nodes and comms.is_blocking(nodes[0])), None
            )
            if launch is None:
                continue
        group = comms.process_group(launch) if launch is not None else ""
        earlier = last.get(group)
        if earlier is not None and place[earlier] > place[kernel]:
            raise _error(kernel, f"it is launched before {inductor.kernel_name(earlier)}, on the same process group")
        last[group] = kernel


def _error(kernel: inductor.Kernel, reason: str) -> VerificationError:
    name = inductor.kernel_name(kernel)
    return VerificationError(
        f"scheduling has broken the order of kernels at {name!r}: {reason}",
        way_out="please report this: it is a defect of farskip-compile. `schedule=False` avoids it",
        where=Where(node=name),
    )
