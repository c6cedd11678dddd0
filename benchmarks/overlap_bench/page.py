"""Writes docs/benchmarks.md from the file of results.

Contract: everything on the page is from the file, so that it can be made anew without measuring (`--table`); `plot.py`
draws the picture that it shows. The section on the scheduler's search is from the file of `schedule_ablation.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from overlap_bench import ablation, cells
from overlap_bench.cells import TRAINING
from overlap_bench.names import COMMUNICATION, FULL, ORDER, OVERLAP, PASSES
from overlap_bench.results import Result
from overlap_bench.store import Store
from overlap_bench.targets import Verdict, judge, summary
from overlap_bench.terminal import MOST_OTHERS, acted_text, ms, percent

INTRO = """\
# Overlap: measured

Made by `benchmarks/overlap.py` from `{json}`; renew with `--table` (nothing is measured then).

One network namespace stands for each host, with one rank on it; links have a limited rate (`benchmarks/network.py`).
For each cell the rate is such that communication alone takes *ratio* times as long as compute alone. All variants take
turns in one process on each host. Times are medians over repetitions of the slowest rank, with interquartile range;
what is faster by how much (*speed-up* is over `plain`) is a median, too, of the ratios within each repetition.

- **hidden**: part of the time with a collective in flight during which the same rank computes, by the profiler
  (`farskip_compile.profiling`), mean over ranks. Of Llama-4 style this counts attention's all-reduces, too.
  A rank that launches first also waits for the others, which no order of its own avoids; where a target is missed, that
  part is told.
- **bound**: max(compute alone, communication alone) + what no schedule can hide: the least makespan of the kernels of
  `full` in the scheduler's model of the machine, over the larger of compute and communication in that model
  (`benchmarks/overlap_bench/bound.py`). Forward and backward count one after another. Compute and communication are
  those of the FarSkip form. It leaves out that compute is slower while a collective is in flight, since that hangs on a
  single figure of the model; where a target is missed, that part is told.
- **covered**: collectives between whose launch and wait a product of matrices or an attention stands in the code that
  Inductor generated. For eager mode there is no such code.
- **peak**: most bytes that one step holds over what was there before, of the rank that holds most. The target on memory
  counts parameters and caches, too.

Variants: `plain` is torch.compile as everybody uses it. `inductor overlap` is Inductor's own scheduler of the graph
(`aten_distributed_optimizations.enable_overlap_scheduling`), `inductor passes` the three passes on kernels that its
configuration recommends for `reorder_for_compute_comm_overlap_passes`; the flag without that list does nothing. Both
need a GPU's figures to estimate costs, and on a CPU the first raises and the second takes all kernels for free: here
they are given the very estimates that our scheduler uses, patched into the process of the benchmark alone. Where they
"did not act", the standard form has nothing that is independent of an exchange (Qwen3-MoE style has no shared experts)
or of an all-reduce. `overlapped eager` is the FarSkip form written by hand with async collectives, hooks that wait for
those of the backward pass, and re-prioritised autograd; `hand-written` the same form compiled by plain Inductor; `none`
and `full` are ours. `none` and both of Inductor's were compared with `plain`, `full` and `overlapped eager` with
`hand-written`, on every rank: logits, or loss and all gradients, to 1e-4 of their norms.

What no schedule can hide. In FarSkip form the MoEs are a chain: dispatch, experts, combine, the next router. While its
experts compute, nothing of that chain is in flight, so where communication is as long as compute, about the experts'
time stays exposed. The last combine has no more than the last layer's attention and shared experts to hide behind. In a
training step both passes exchange equally much, but the forward pass computes half as much: at a ratio of 0.5 in all,
its own is 0.75 or more. In Llama-4 style every other layer is dense, and the next attention reads what it adds: FarSkip
leaves out routed experts only, so the all-reduce of a dense layer is not hidden.

Memory. The scheduler keeps its limit (`memory_increase`, 5 %) by the same account as Inductor: buffers live from their
kernel to the last that reads them, with parameters. What Inductor generates holds less, since it writes in place, and
not always equally much less: it keeps a freed block for a later buffer of the same size where, by that account, the
peak does not grow. Where one layer's attention runs between the experts of another, more blocks are kept. So a
measured peak may grow by more than the account says; where the target is missed, the page tells both. With skewed
routing and no drops, sizes that depend on data are estimated as those of the rank that gets most rows.

Limits. The processors that compute also carry the bytes: a collective in flight costs them part of the time, which the
bound does not count (told where a target is missed). Where messages are large, TCP hands segments of 256 KiB to the
link (BIG TCP), which halves that. A link lets 1.25 segments pass at once after a pause, 80 KB with segments of 64 KiB,
so that the small messages of decode steps travel faster next to compute than alone. Where four hosts share two cores,
compute is measured in the same way, four at a time; what one rank leaves idle another uses, so that hiding
communication gains less in step time than it would on real hosts.
"""


def page(store: Store, json_name: str, picture: str | None, ablated: str = "") -> str:
    """The whole page; `ablated` is the section on the scheduler's search."""
    results = store.ordered()
    verdicts = [verdict for result in results for verdict in judge(result)]
    parts = [INTRO.format(json=json_name), _facts(store), _not_measured(results)]
    if picture is not None:
        parts.append(f"![hidden communication and step time over the bound]({picture})\n")
    parts += [_targets(verdicts), *([ablated] if ablated else []), "## Cells\n"]
    for group, members in groupby(results, key=lambda result: result.at.group):
        parts.append(_group(str(group), list(members)))
    return "\n".join(parts)


def write_page(store: Store, path: Path, json_path: Path, picture: Path | None) -> None:
    """The page as a file."""
    name = None if picture is None else picture.name
    path.write_text(page(store, json_path.name, name, ablation.ablation(json_path.with_name(ablation.NAME))))


def _facts(store: Store) -> str:
    machines = Counter(result.machine for result in store.ordered())
    facts = {"machine": "; ".join(f"{name} ({count} cells)" for name, count in machines.items()), **store.facts}
    return "\n".join(f"- {name}: {text}" for name, text in facts.items()) + "\n"


def _not_measured(results: Sequence[Result]) -> str:
    """The cells of the grid that are not on the page, so that nobody takes what is for all."""
    measured = {str(result.at) for result in results}
    wanted = cells.grid()
    missing = cells.by_group(cell for cell in wanted if str(cell) not in measured)
    if not missing:
        return f"All {len(wanted)} cells of the grid are measured.\n"
    count = sum(map(len, missing.values()))
    names = "; ".join(
        f"`{group}` at {', '.join(f'{ratio:g}' for ratio in ratios)}" for group, ratios in missing.items()
    )
    return f"Of the grid's {len(wanted)} cells, {count} are not measured (`--resume` measures them): {names}.\n"


def _targets(verdicts: Sequence[Verdict]) -> str:
    lines = ["## Targets", "", "| target | met | cells |", "|---|---|---|"]
    lines += [f"| {target} | {met} | {total} |" for target, met, total in summary(verdicts)]
    missed = [verdict for verdict in verdicts if not verdict.met]
    if missed:
        lines += ["", "Missed:", ""]
        lines += [f"- `{verdict.cell}` {verdict.target}: {verdict.text}" for verdict in missed]
    return "\n".join([*lines, ""])


def _group(name: str, results: Sequence[Result]) -> str:
    training = results[0].at.group.phase == TRAINING
    apart = ["hidden fwd", "hidden bwd"] if training else []
    head = ["ratio", "variant", "step", "spread", "speed-up", "/ bound", "hidden", *apart, "covered", "peak"]
    machines = ", ".join(sorted({result.machine for result in results}))
    lines = [f"### {name}", "", f"{results[0].about}; {results[0].cores}; {machines}.", ""]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for result in results:
        lines += [f"| {' | '.join(row)} |" for row in _rows(result, training)]
    lines.append("")
    for result in results:
        lines.append(_notes(result))
    return "\n".join([*lines, ""])


def _rows(result: Result, training: bool) -> list[list[str]]:
    rows = []
    for name in ORDER:
        if name not in result.exposed:
            continue
        timing, code = result.timings[name], result.code.get(name)
        apart = [percent(result.hidden(name, part)) for part in ("forward", "backward")] if training else []
        rows.append(
            [
                f"{result.at.ratio:g}",
                f"**{name}**" if name == FULL else name,
                ms(timing.median),
                ms(timing.spread),
                f"{result.speed_up(name):.2f}",
                f"{result.over_bound(name):.2f}",
                percent(result.hidden(name)),
                *apart,
                f"{code['covered']}/{code['collectives']}" if code and code["collectives"] else "-",
                f"{result.peak_bytes[name] / 1e6:.3g} MB",
            ]
        )
    return rows


def _notes(result: Result) -> str:
    """What belongs to one cell and not to a variant."""
    rate = "no network: loopback" if result.rate is None else result.network
    parts = [
        f"ratio {result.at.ratio:g} ({result.ratio:.2f} reached): {rate}",
        f"compute {ms(result.timings['compute'].median)}, communication {ms(result.timings[COMMUNICATION].median)}, "
        f"bound {ms(result.bound)} with {ms(result.unhideable)} that no schedule can hide",
    ]
    growth = result.memory_growth()
    if growth is not None:
        parts.append(f"estimated peak of `full` {100 * growth:+.1f} %")
    parts += [text for name in (OVERLAP, PASSES) if (text := acted_text(result, name)) is not None]
    parts += [f"{name} is missing: {why}" for name, why in result.missing.items()]
    if result.others > MOST_OTHERS:
        parts.append(f"OTHER PROCESSES KEPT {result.others:.2f} CORES BUSY")
    return f"- {'; '.join(parts)}."
