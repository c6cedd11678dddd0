# SPDX-License-Identifier: Apache-2.0
"""The least makespans of cells that are measured already, by the bound as it is now.

Usage: python benchmarks/least_makespan.py CELL ... [--variants NAME ...] [--imbalance X] [--json FILE]

For when the bound (`overlap_bench/bound.py`) gets closer to what schedules can reach: `overlap.py` writes how long the
least makespan of each graph is, but not the graph. Here each variant is compiled once more, by the profile that its
cell was scheduled by, on rank 0 of ranks that send nothing; no kernel is built or run. Only if the scheduler's order is
the one in the file, by its makespan, its communication and the memory that it holds, the least makespan is written
beside it. `--imbalance` is that of skewed cells, whose ranks get unequal numbers of rows: a wrong one is refused as any
other order is. Exit status: 0 all were written; 1 an order was another one, and nothing of its variant was written; 2
wrong usage, or a cell that is not in the file.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import DOCS, RecordsError
from overlap_bench import settings, steps
from overlap_bench.bound import bound_of
from overlap_bench.cells import OURS
from overlap_bench.inductor import captured_programs
from overlap_bench.results import Result, Store

from farskip_compile._compat import inductor
from farskip_compile._compat.generated import generating_only
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.costs import HardwareProfile
from farskip_compile.measure.profiling import kernels_visible
from farskip_compile.passes.schedule.program import Program
from farskip_compile.records.announcement import Announcement, announcement

WRITTEN, ANOTHER, USAGE = 0, 1, 2
EQUAL = 1e-9
"""Of two estimates of the same order, relative."""
COMPARED = ("seconds", "communication_seconds", "peak_bytes")


def scheduled(result: Result, name: str, imbalance: float) -> tuple[list[Program], list[dict[str, Any]]]:
    """The kernels of a variant's graphs, forward first, and what the scheduler says of their order."""
    group = result.at.group
    sizes = settings.settings_of(group, settings.FULL)
    announced: list[str] = []

    def take(kernels: list[inductor.Kernel]) -> None:
        announced.extend(inductor.text_argument(one) for one in kernels if inductor.calls(one, announcement()))

    torch.compiler.reset()
    with (
        fake_ranks(group.hosts) as ranks,
        kernels_visible(),
        captured_programs() as programs,
        generating_only(take),
        contextlib.suppress(RuntimeError),  # there is nothing to call
    ):
        model = steps.make_model(sizes, ranks)
        profile = HardwareProfile.from_json(result.profile)
        options = {**OURS[name], "profile": profile, "load_imbalance": imbalance, "check_order": False}
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        steps.Step(sizes, 0, model)(steps.Variant(name, model, compiled))
    return programs, [Announcement.from_text(text).report.to_json() for text in announced]


def differences(found: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells two lists of schedules apart."""
    if len(found) != len(known):
        return [f"{len(found)} graphs, {len(known)} in the file"]
    return [
        f"{one['phase']} {what}: {one['after'][what]:.6g}, {other['after'][what]:.6g} in the file"
        for one, other in zip(found, known, strict=True)
        for what in COMPARED
        if abs(one["after"][what] - other["after"][what]) > EQUAL * other["after"][what]
    ]


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cells", nargs="+", metavar="CELL")
    parser.add_argument(
        "--variants", nargs="+", choices=list(OURS), default=list(OURS), help="of those that a cell has"
    )
    parser.add_argument("--imbalance", type=float, default=1.0, help="of a skewed cell (default: 1)")
    parser.add_argument("--json", type=Path, default=DOCS / "benchmarks.json", metavar="FILE")
    args = parser.parse_args(given)
    try:
        store = Store.load(args.json)
    except RecordsError as error:
        print(f"least_makespan.py: {error}", file=sys.stderr)
        return USAGE
    unknown = [cell for cell in args.cells if cell not in store.results]
    if unknown:
        print(f"least_makespan.py: {args.json} has no {', '.join(unknown)}", file=sys.stderr)
        return USAGE
    status = WRITTEN
    for result in [store.results[cell] for cell in args.cells]:
        least = dict(result.least_makespans)
        for name in [name for name in args.variants if name in least]:
            programs, found = scheduled(result, name, args.imbalance)
            wrong = differences(found, result.estimates[name])
            if wrong:
                print(f"{result.cell} {name}: another order: {'; '.join(wrong)}", flush=True)
                status = ANOTHER
                continue
            before, least[name] = result.over_least(name), bound_of(programs).slowed
            after = replace(result, least_makespans=least).over_least(name)
            print(f"{result.cell} {name}: {before:.3f} -> {after:.3f} x the least makespan", flush=True)
        store.add(replace(result, least_makespans=least))
    return status


if __name__ == "__main__":
    sys.exit(main())
