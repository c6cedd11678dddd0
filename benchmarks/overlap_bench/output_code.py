"""What Inductor's generated code shows of overlap: which heavy kernels stand between a launch and its wait.

Contract: reads the text of the code that runs, of every compiled graph with collectives; nothing is taken from what a
pass says of itself. Heavy are calls of libraries: products of matrices and attention. Fused loops are not counted.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

from torch._inductor.graph import GraphLowering

_LAUNCH = re.compile(r"^\s*(?:(\w+) = )?torch\.ops\._c10d_functional\.(?!wait_tensor)\w+\.\w+\((\w+)")
_WAIT = re.compile(r"^\s*(?:\w+ = )?torch\.ops\._c10d_functional\.wait_tensor\.default\((\w+)")
_HEAVY = re.compile(
    r"extern_kernels\.(?:mm|bmm|addmm|baddbmm|_mm_plus_mm|convolution|_grouped_mm)\w*\("
    r"|torch\.ops\.(?:aten|mkl|mkldnn)\.\w*(?:mm|attention|linear|matmul|convolution)\w*(?:\.\w+)?\("
)


@dataclass(frozen=True)
class Flight:
    """One collective of the code."""

    heavy: int
    """Heavy kernels between its launch and its wait."""


@dataclass(frozen=True)
class CodeFacts:
    """Of all graphs of one variant."""

    collectives: int
    covered: int
    """Collectives with a heavy kernel between launch and wait."""
    heavy: int
    """Heavy kernels between launch and wait, summed over the collectives."""


@contextlib.contextmanager
def captured_code() -> Iterator[list[str]]:
    """The code of every graph that Inductor compiles or loads inside of the `with` block, in order."""
    found: list[str] = []

    def save(code: str) -> None:
        if code not in found:
            found.append(code)

    with mock.patch.object(GraphLowering, "save_output_code", save):
        yield found


def flights(code: str) -> list[Flight]:
    """The collectives of one graph in the order of their launches; one without a wait in it counts to its end."""
    open_at: dict[str, tuple[int, int]] = {}
    found: list[Flight] = []
    heavy = 0
    for line in code.splitlines():
        if (launch := _LAUNCH.match(line)) is not None:
            result, argument = launch.groups()
            # in-place collectives are waited for by the name of what they work on
            name = argument if result is None or "_.default(" in line else result
            open_at[name] = (len(found), heavy)
            found.append(Flight(0))
        elif (wait := _WAIT.match(line)) is not None:
            if wait[1] in open_at:
                index, before = open_at.pop(wait[1])
                found[index] = Flight(heavy - before)
        elif _HEAVY.search(line):
            heavy += 1
    for index, before in open_at.values():
        found[index] = Flight(heavy - before)
    return found


def facts(codes: Sequence[str]) -> CodeFacts:
    """Of several graphs together."""
    all_flights = [flight for code in codes for flight in flights(code)]
    return CodeFacts(
        collectives=len(all_flights),
        covered=sum(flight.heavy > 0 for flight in all_flights),
        heavy=sum(flight.heavy for flight in all_flights),
    )
