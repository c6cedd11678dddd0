# SPDX-License-Identifier: Apache-2.0
"""The options that all ranks of a process group must have in common, beyond the collectives that they launch.

In:    the configuration, and the report of the graph that was rewired by it.
Out:   plain data that travels with the order of the collectives (see `ranks.agree`), and the differences of two.
Never: includes options that may differ: names of process groups, callbacks, options of Inductor, batch sizes.

A different connectivity, or range of layers, is a different function with the same collectives: nothing hangs, and the
ranks together compute no model at all. Different limits or cost figures may order collectives differently for
other inputs, if not for these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.records.compile import CompileReport

OPTIONS = (
    "connectivity",
    "layers",
    "inner",
    "merge_reductions",
    "pieces",
    "pieces_along",
    "micro_batches",
    "schedule",
    "memory_increase",
    "load_imbalance",
    "in_flight_bytes",
    "disable_passes",
    "declared",
)
ABSENT = "nothing"
SHOWN = 200
"""The largest number of characters of a value in a message."""


def common_options(config: FarSkipConfig, report: CompileReport | None, package: str) -> dict[str, Any]:
    """Return the options that must be the same on all ranks that run a graph together, as plain data.

    Args:
        config: the configuration.
        report: the report of the graph, since one rank alone may refuse a graph without `strict`; None: not known.
        package: the hash of this package's source.
    """
    options = config.to_json()
    result = (str(report.outcome), report.wiring_after) if report is not None else ()
    plan = report.plan if report is not None else ""
    return {
        **{name: options[name] for name in OPTIONS},
        **({"plan": plan} if plan else {}),
        "ep_group": config.ep_group is not None,
        "result": ", ".join(filter(None, result)),
        "package": package[:16],
        "torch": str(torch.__version__),
    }


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each difference, and both values as text. Tables differ row by row."""
    for name in sorted({*ours, *theirs}):
        one, other = ours.get(name, ABSENT), theirs.get(name, ABSENT)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from ((f"{name}[{row!r}]", mine, its) for row, mine, its in differences(one, other))
        elif one != other:
            yield name, _shown(one), _shown(other)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
