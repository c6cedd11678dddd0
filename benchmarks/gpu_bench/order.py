# SPDX-License-Identifier: Apache-2.0
"""The order of launches, waits and compute in generated programs, beside what our scheduler has reported.

In:    the source of a program of Inductor's; a report of ours on the same graph.
Out:   an `Order`.
Never: trusts a report: everything but `as_decided` is read from the program.

A program calls what it runs line by line. The order is as decided if the launches of each group are those of the
report, one after another, and something is computed under the same flights.

Algorithm:
1. Take the calls from the text, and of each launch its operator and its group.
2. Of each flight, see what is called between launch and wait.
3. Compare both with the report.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from farskip_compile.records.schedule import ScheduleReport
from gpu_bench.results import Order

_LAUNCH = re.compile(r"^(?:(\w+) = )?torch\.ops\._c10d_functional\.(?!wait_tensor)(\w+?)_?\.\w+\((\w+)")
_WAIT = re.compile(r"^(?:\w+ = )?torch\.ops\._c10d_functional\.wait_tensor\.default\((\w+)")
_COMPUTE = (
    (r"^\w.*attention\w*(?:\.\w+)?\(", "A"),
    (r"extern_kernels\.\w*mm|\b_?(?:scaled_)?grouped_mm|\btriton_tem_\w+\.run\(", "m"),
    (r"\b(?:triton|multi_tensor)\w*\.run\(|\b(?:cpp_fused\w*|\w*kernel\w*)\(", "k"),
    (r"torch\.ops\.|extern_kernels\.", "o"),
)
_COMMENT = ("#", "assert", "del ", "raise", "return")


@dataclass
class _Flight:
    operator: str
    heavy: int = 0
    """Products and attentions between launch and wait."""
    any: int = 0
    """All that is called there."""


def order_of(code: str, variant: str, phase: str, report: ScheduleReport | None, graph: str = "") -> Order:
    """See the module's contract; `report`: of ours, on this graph."""
    calls, flights = _read(code)
    found = Order(variant, phase, graph or (report.phase if report else ""), calls, _heavy(flights), None)
    if report is None:
        return found
    differs = _differs(flights, report)
    return Order(found.variant, phase, found.graph, calls, found.hidden, not differs, differs)


def _heavy(flights: Sequence[_Flight]) -> tuple[int, ...]:
    return tuple(flight.heavy for flight in flights)


def _read(code: str) -> tuple[str, list[_Flight]]:
    letters: list[str] = []
    flights: list[_Flight] = []
    flying: dict[str, _Flight] = {}
    body = code.rpartition("def call(")[2].partition("\ndef ")[0]
    for line in map(str.strip, body.splitlines()):
        if line.startswith(_COMMENT):
            continue
        if (launch := _LAUNCH.match(line)) is not None:  # 1
            result, operator, argument = launch.groups()
            in_place = result is None or f"{operator}_." in line
            flights.append(_Flight(operator))
            flying[argument if in_place else result] = flights[-1]
            letters.append("L")
        elif (wait := _WAIT.match(line)) is not None:
            flying.pop(wait[1], None)
            letters.append("W")
        else:
            letter = next((letter for pattern, letter in _COMPUTE if re.search(pattern, line)), "")
            letters.append(letter)
            for flight in flying.values() if letter else ():  # 2
                flight.any += 1
                flight.heavy += letter in "mA"
    return "".join(letters), flights


def _differs(flights: Sequence[_Flight], report: ScheduleReport) -> str:
    decided = [launch.split()[0] for launches in report.orders.values() for launch in launches]
    seen = [flight.operator for flight in flights]
    if len(report.orders) == 1 and decided != seen:  # 3
        return f"launches: {', '.join(seen)}; decided: {', '.join(decided)}"
    if len(report.flights) != len(flights):
        return f"{len(flights)} flights, decided: {len(report.flights)}"
    pairs = zip(report.flights, flights, strict=True)
    apart = [str(place) for place, (wanted, found) in enumerate(pairs) if (wanted.compute > 0) != (found.any > 0)]
    return f"what is under the flights {', '.join(apart)} of {len(flights)}" if apart else ""
