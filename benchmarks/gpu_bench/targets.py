# SPDX-License-Identifier: Apache-2.0
"""What a run on a GPU is to show, and whether it does.

    cost       our backend with nothing to hide takes at most 1.01 times plain Inductor's step
    memory     its peak is at most 5 % over plain Inductor's, its default limit
    correct    outputs and gradients are within 1e-5 (float32) and 2e-2 (bfloat16) of eager, or plain Inductor is as far
               off
    order      launches and waits are where the scheduler has decided
    hidden     at a ratio of 0.5, 98 % of the communication in prefill and 95 % in a training step
    graphs     replays of CUDA graphs give the same bits, and are as close to eager as the same code without them
    parts      every part has ended, and nothing in it has failed

Contract: a verdict for each row that a target applies to, with the figures, and by how much it is missed. What was not
measured is not judged, but for `parts`. A dry run is judged by `correct`, `order`, `graphs` and `parts` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from common import Target

from gpu_bench.results import DONE, Correct, Cost, Failure, Graphs, Link, Order, Results
from gpu_bench.sizes import LIMITS
from gpu_bench.variants import FULL, PIECES, PREFILL, TRAINING

COST, MEMORY = 1.01, 1.05
HIDDEN = {PREFILL: 0.98, TRAINING: 0.95}
RATIO = 0.5


def judge(results: Results) -> list[Target]:
    """See the module."""
    found = [*_correct(results), *_order(results), *_graphs(results), *_parts(results)]
    return found if results.dry else [*_cost(results.rows(Cost)), *_hidden(results.rows(Link)), *found]


def _cost(rows: Iterable[Cost]) -> Iterator[Target]:
    for row in rows:
        over = "" if row.ratio <= COST else f", missed by {row.ratio - COST:.3f}"
        where = f"{row.group}, {row.phase}"
        yield Target("cost", row.ratio <= COST, f"{row.ratio:.3f} x plain Inductor (at most {COST} x){over}", where)
        if row.plain_peak and row.ours_peak:
            ratio = row.ours_peak / row.plain_peak
            over = "" if ratio <= MEMORY else f", missed by {(row.ours_peak - MEMORY * row.plain_peak) / 1e6:.0f} MB"
            text = f"{ratio:.3f} x plain Inductor's {row.plain_peak / 1e9:.2f} GB (at most {MEMORY} x){over}"
            yield Target("memory", ratio <= MEMORY, text, where)


def _hidden(rows: Iterable[Link]) -> Iterator[Target]:
    """Of ours that is rewired, the form that hides more."""
    for phase, wanted in HIDDEN.items():
        ours = [r for r in rows if (r.phase, r.ratio, r.blocks) == (phase, RATIO, 0) and r.variant in (FULL, PIECES)]
        if ours:
            best = max(ours, key=lambda row: row.hidden)
            met = best.hidden >= wanted
            shown = best.hidden if met else min(best.hidden, wanted - 1e-3)  # what is missed does not look met
            missed = "" if met else f", missed by {100 * (wanted - shown):.1f} points"
            text = f"{100 * shown:.1f} % by {best.variant!r} (at least {100 * wanted:.0f} %){missed}"
            yield Target("hidden", met, text, f"{phase}, ratio {RATIO}")


def _correct(results: Results) -> Iterator[Target]:
    for row in results.rows(Correct):
        limit, where = LIMITS[row.dtype], f"{row.mode}, {row.dtype}"
        pairs = ((row.output, row.plain_output), (row.gradient, row.plain_gradient))
        met = all(ours <= max(limit, plain or 0.0) for ours, plain in pairs) and not row.missing
        text = f"output {row.output:.1e}, gradient {row.gradient:.1e} of {row.worst} (at most {limit:g})"
        if row.plain_output is not None:
            text += f"; plain Inductor {row.plain_output:.1e}, {row.plain_gradient:.1e}"
        text += f"; no gradient of {', '.join(row.missing)}" if row.missing else ""
        yield Target("correct", met, text, where)


def _order(results: Results) -> Iterator[Target]:
    for row in results.rows(Order):
        if row.as_decided is not None:
            text = row.differs or f"{row.calls.count('L')} launches and {row.calls.count('W')} waits as decided"
            yield Target("order", row.as_decided, text, f"{row.phase}, {row.variant}, {row.graph}")


def _graphs(results: Results) -> Iterator[Target]:
    most = max(LIMITS.values())
    for row in results.rows(Graphs):
        met = row.same and row.off <= most
        bits = "the same bits" if row.same else "OTHER BITS"
        yield Target("graphs", met, f"replays have {bits}, {row.off:.1e} off (at most {most:g})", row.variant)


def _parts(results: Results) -> Iterator[Target]:
    for part in results.parts:
        failed = [f"{row.what}: {row.why}" for row in part.rows if isinstance(row, Failure)]
        why = [part.why] if part.status != DONE else []
        said = "; ".join([*why, *failed]) or f"{part.seconds:.0f} s"
        yield Target("parts", not why and not failed, said, part.name)
