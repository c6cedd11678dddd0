"""Writes docs/benchmarks.md from the file of results, and from that of `schedule_ablation.py` next to it, if any.

Contract: everything on the page comes from the files, so that `--table` rewrites it without measuring; `plot.py` draws
its picture.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from common import Target, markdown, replace

from overlap_bench import cells
from overlap_bench.cells import COMMUNICATION, FULL, ORDER, OVERLAP, PASSES, TRAINING
from overlap_bench.results import Result, Store
from overlap_bench.targets import judge, summary
from overlap_bench.terminal import MOST_OTHERS, acted_text, ms, shares_text, texts

INTRO = """\
# Overlap: measured

Made by `benchmarks/overlap.py` from `{json}`; `--table` rewrites it without measuring.

One network namespace stands for each host, with one rank on it; links have a limited rate (`benchmarks/network.py`),
chosen for each cell so that communication alone takes *ratio* times as long as compute alone. All variants are
interleaved in one process on each host. Times are medians over repetitions of the slowest rank, with interquartile
range; *speed-up* is the median, over repetitions, of the time of `plain` over the variant's.

- **hidden**: fraction of the time with a collective in flight during which the same rank computes, by the profiler
  (`farskip_compile.profiling`), mean over ranks. In Llama-4 style this includes attention's all-reduces. A rank that
  launches first also waits for the others, which no order of its own avoids; where a target is missed, that share is
  reported.
- **floor**: the larger of compute alone and communication alone, both of the FarSkip form.
- **bound**: floor + what no schedule of the graph in one piece can hide: the least makespan of the kernels of `full` in
  the scheduler's model of the machine, less the larger of compute and communication in that model
  (`benchmarks/overlap_bench/bound.py`). Forward and backward count one after the other. The bound ignores that
  collectives in flight slow compute, since that depends on a single figure of the model; where a target is missed, the
  slowdown is reported. In pieces a step may take less than the bound, and never less than the floor.
- **covered**: collectives with a matrix product or an attention between launch and wait in the code that Inductor
  generated. Eager mode has no such code.
- **peak**: most bytes that one step holds over what was allocated before, on the rank that holds most. The target on
  memory includes parameters and caches.

Models. By FLOPs at 4096 tokens, the layers of DeepSeek-V3 compute .41, .07 and .53 in attention, shared and routed
experts, and those of Qwen3-235B .41, 0 and .59. The models here have widths with which they do the same on this
machine; each cell says what was measured (`benchmarks/overlap_bench/shares.py`). `deepseek_v3-long` is mostly
attention, as at a long context. Each rank has two sequences.

Variants: `plain` is torch.compile out of the box. `inductor overlap` is Inductor's own scheduler of the graph
(`aten_distributed_optimizations.enable_overlap_scheduling`), `inductor passes` the three passes on kernels that its
configuration recommends for `reorder_for_compute_comm_overlap_passes`; the flag without that list does nothing. Both
need a GPU's figures to estimate costs; on a CPU the first raises and the second takes all kernels to be free. Here they
get the very estimates that our scheduler uses, patched into the benchmark's process alone. Where they "did not act",
the standard form has nothing independent of an exchange (Qwen3-MoE style has no shared experts) or of an all-reduce.
`overlapped eager` is the FarSkip form written by hand with async collectives, hooks that wait for those of the backward
pass, and re-prioritised autograd; `chunked eager` the plain model with each exchange in two chunks of experts by hand;
`micro-batches` the plain model on each half of the batch, by hand and eager, one half's exchanges beside the other's
compute (padded exchanges have room for a half's tokens, and may drop other rows);
`hand-written` is the FarSkip form compiled by plain Inductor; `none`, `full` and `lag2` are ours, in one piece, two
pieces, or `pieces="auto"`, the latter also with more memory. Without drops (skewed routing) there are two more:
`none, 2 batches` is `micro_batches=2`, the batch in two parts through the stack; `full, by token` has two pieces of
tokens, each of which goes from one layer's exchange into the next. What changes no function was compared with `plain`,
what is rewired with `hand-written` (or the form of lag2 by hand), on every rank: logits, or loss and all gradients, to
1e-4 of their norms.

What no schedule can hide. In one piece the MoEs are a chain, dispatch, experts, combine, the next router, under `full`,
too: while its experts compute, nothing of that chain is in flight. So where communication is as long as compute, about
the experts' time stays exposed. In pieces, experts compute on one while another is on its way. What remains is the last
piece of the last combine, which has nothing after it, and under `none` the first piece of each dispatch. In a training
step both passes exchange equally much, but the forward pass computes half as much: at an overall ratio of 1, its own is
1.5 or more. In Llama-4 style every other layer is dense, and the next attention reads what it adds: FarSkip leaves out
routed experts only, so the all-reduce of a dense layer is not hidden.

Memory. The scheduler keeps its limit (`memory_increase`, 5 %) by an account of what the generated program holds:
buffers live from their kernel to the last reader, with parameters; what Inductor writes over a buffer that nothing else
reads takes no memory of its own; a concatenation lives from the kernel that makes its first part; on a CPU, kernels
between two calls of libraries are one function, at whose end all that they read is freed. In tests the account is
within 1 % of what generated programs hold. The limit starts from what Inductor would hold if nothing were scheduled.
Inductor's habit to keep a freed block for a later buffer of its size (`allow_buffer_reuse`) is off under our backend,
since no account knows of it; `plain` keeps it. With skewed routing and no drops, data-dependent sizes are estimated as
those of the rank that gets most rows. These models have few layers: as many rows are in flight as in a deep model, but
there are fewer parameters, so that 5 % is less than one exchange. `full, +50 %` shows what more memory is worth: of a
model with 61 such layers, as DeepSeek-V3 has, as much is 5 %.

Limits. The processors that compute also carry the bytes: a collective in flight costs them time, which the bound does
not count (reported where a target is missed). Where messages are large, TCP hands segments of 256 KiB to the link (BIG
TCP), which halves that. After a pause, a link lets 1.25 segments pass at once (80 KB with segments of 64 KiB), so that
the small messages of decode steps travel faster next to compute than alone. Where four hosts share two cores, compute
is measured the same way, four at a time; what one rank leaves idle another uses, so that hiding communication gains
less step time than on real hosts.
"""

GROUPS = ("kernels", "graphs", "full size")
ABLATION = "schedule_ablation.json"
SEARCHED = """\
## Ablation of the scheduler's search

`{command}`; {machine}; {versions}. The programs are those that the search is called with for {kernels} (as {counts[0]}
programs of kernels and {counts[1]} of graphs, forward and backward apart), and for {full_size} at full width by
`farskip_compile.simulate` ({counts[2]}, as written and under FarSkip). Each was searched without one part. The table
says by how much the makespan grows in the machine model: for the worst program, and in brackets on average. A negative
figure is a gain. Then come the worst growth on a network half as slow again, for which the search leaves a margin, and
the worst growth of the peak.
"""
KEPT = """\
A part stays if it saves 1 % anywhere, or guards memory or a promise. `lower_peak`, the second search and the price of
memory keep peaks low. Coarsening halves the time of searches in large graphs where memory is scarce (2363 tasks with a
limit of 1 %: 2.1 s without it, 1.0 s with it). Two orders are known before the search: AMD's, so that the result is
never slower than it, and for kernels one that holds little memory, which keeps the limit where Inductor's own does not.
A compute weight below 1 lets what leads to a launch go first, which matters more on slower networks.
"""
REMOVED = """\
Measured in the same way on these and on `llama4/training/balanced/2/1`, and then removed, since it saved less than 1 %
everywhere:
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
    name = None if picture is None else picture.name
    replace(path, page(store, json_path.name, name, ablation(json_path.with_name(ABLATION))))


def _facts(store: Store) -> str:
    machines = Counter(result.machine for result in store.ordered())
    facts = {"machine": "; ".join(f"{name} ({count} cells)" for name, count in machines.items()), **store.facts}
    return "\n".join(f"- {name}: {text}" for name, text in facts.items()) + "\n"


def _not_measured(results: Sequence[Result]) -> str:
    """The cells of the grid that are not on the page, so that nobody takes it for complete."""
    measured = {str(result.at) for result in results}
    wanted = cells.grid()
    missing = cells.by_group(cell for cell in wanted if str(cell) not in measured)
    if not missing:
        return f"All {len(wanted)} cells of the grid are measured.\n"
    count = sum(map(len, missing.values()))
    apart = ((group, ", ".join(f"{ratio:g}" for ratio in ratios)) for group, ratios in missing.items())
    names = "; ".join(f"`{group}` at {ratios}" for group, ratios in apart)
    return f"{count} of the grid's {len(wanted)} cells are not measured (`--resume` measures them): {names}.\n"


def _targets(verdicts: Sequence[Target]) -> str:
    rows = ([target, str(met), str(total)] for target, met, total in summary(verdicts))
    lines = ["## Targets", "", *markdown("target | met | cells", rows)]
    missed = [f"- `{verdict.of}` {verdict.target}: {verdict.found}" for verdict in verdicts if not verdict.met]
    lines += ["", "Missed:", "", *missed] if missed else []
    return "\n".join([*lines, ""])


def _group(name: str, results: Sequence[Result]) -> str:
    apart = {"hidden fwd": "in fwd", "hidden bwd": "in bwd"} if results[0].at.group.phase == TRAINING else {}
    head = ["ratio", "variant", "step", "spread", "speed-up", "/ bound", "hidden", *apart, "covered", "peak"]
    machines = ", ".join(sorted({result.machine for result in results}))
    rows = []
    for result in results:
        for variant in ORDER:
            if variant in result.exposed:
                found = texts(result, variant)
                found |= {"ratio": f"{result.at.ratio:g}", "step": found["median"], "peak": f"{found['peak MB']} MB"}
                found["variant"] = f"**{variant}**" if variant == FULL else variant
                rows.append([found[apart.get(column, column)] for column in head])
    text = f"{results[0].about}; {results[0].cores}; {machines}."
    return "\n".join([f"### {name}", "", text, "", *markdown(" | ".join(head), rows), "", *map(_notes, results), ""])


def _notes(result: Result) -> str:
    rate = "no network: loopback" if result.rate is None else result.network
    parts = [
        f"ratio {result.at.ratio:g} ({result.ratio:.2f} reached): {rate}",
        shares_text(result),
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


# What each part of the scheduler's search earns


def ablation(path: Path) -> str:
    """The section; nothing without the file."""
    if not path.exists():
        return ""
    data = json.loads(path.read_text(encoding="utf-8"))
    programs = data["programs"]
    intro = SEARCHED.format(
        **data["facts"],
        kernels=_names(programs["kernels"]),
        full_size=_names(programs["full size"]),
        counts=[len(programs[group]) for group in GROUPS],
    )
    head = "without | >kernels of cells | >graphs of cells | >full size | >slower network | >peak"
    removed = (f"- {text}" for text in data["removed"])
    return "\n".join([intro, *markdown(head, map(_part, data["rows"])), "", KEPT, REMOVED, *removed, ""])


def _names(cases: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(cases))


def _part(row: Mapping[str, Any]) -> Sequence[str]:
    times = ("{} ({})".format(*map(_percent, row["time"].get(group, (0.0, 0.0)))) for group in GROUPS)
    return [row["part"], *times, _percent(row["slower"]), _percent(row["peak"])]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:+.1f} %".replace("-0.0", "+0.0")
