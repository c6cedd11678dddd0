# SPDX-License-Identifier: Apache-2.0
"""Writes docs/benchmarks.md from the file of results, and from those of the ablations next to it, if any.

Contract: everything on the page comes from the files, so that `--table` rewrites it without measuring; `plot.py` draws
its picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from common import Target, markdown, replace

from overlap_bench import cells
from overlap_bench.ablations import pass_ablation, search_ablation
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
  (`farskip_compile.measure.profiling`), mean over ranks. In Llama-4 style this includes attention's all-reduces. A rank
  that launches first also waits for the others, which no order of its own avoids; where a target is missed, that share
  is reported.
- **floor**: the larger of compute alone and communication alone, both of the FarSkip form.
- **bound**: floor + what no schedule of the graph in one piece can hide: the least makespan of the kernels of `full` in
  the scheduler's model of the machine, less the larger of compute and communication in that model
  (`benchmarks/overlap_bench/bound.py`). Forward and backward count one after the other. The bound ignores that
  collectives in flight slow compute, since that depends on a single figure of the model; where a target is missed, the
  slowdown is reported. In pieces a step may take less than the bound.
- **in flight**: how long there was a collective in flight. Between two hosts that are not exactly in step, gloo's
  all-to-all sends first one way and then the other (`benchmarks/harness/bandwidth.py`), so it takes up to twice what
  the link needs. Of two pieces in flight, or two chunks or micro-batches by hand, one may send while the other
  receives: then the same bytes take less time, and a step may take less than the floor. NCCL sends both ways at once.
  So where communication is as long as compute or longer, a part of what pieces gain here is gloo's; the scheduler's
  model knows nothing of it, and its own figure stands beside that of the target for an unchanged model.
- **order** (a target): the makespan of our order over the least one of its own kernels, both in the scheduler's model,
  collectives in flight slowing compute; the least one holds as much memory as it likes. Of older
  cells that missed it, and whose order is still what our scheduler finds, the least one is computed anew, by a bound
  that knows of pieces (`benchmarks/least_makespan.py`).
- **covered**: collectives with a matrix product or an attention between launch and wait in the code that Inductor
  generated. Eager mode has no such code.
- **peak**: most bytes that one step holds over what was allocated before, on the rank that holds most; from steps in
  which waits return a millisecond later, so that the profiled thread is the last to hold a message. The target on
  memory includes parameters and caches.

Models. By FLOPs at 4096 tokens, the layers of DeepSeek-V3 compute .41, .07 and .53 in attention, shared and routed
experts, and those of Qwen3-235B .41, 0 and .59. The models here have widths with which they do about the same on this
machine; each cell says what was measured (`benchmarks/overlap_bench/shares.py`). An exchange of DeepSeek-V3 sends 1.1 %
of the bytes of a rank's weights (bfloat16, a 64th of the experts, 4096 tokens on each rank, 1.25 times balanced), of
Qwen3-235B 1.5 %, and twice that at 8192 tokens. With four layers in place of 61 and 94 that takes 128 experts, each of
which gets few rows; each cell says what it is here. Without drops there are 16 experts, since each has kernels of its
own: there it is more. `deepseek_v3-long` is mostly attention, as at a long context. Each rank has two sequences.

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
pieces, or `pieces="auto"`; two pieces and `lag2` at the ratio 1. Without drops (skewed routing) there are two more:
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
reads takes no memory of its own; a concatenation lives from the kernel that makes its first part; all results of a call
live until the last one is taken; what is saved for backward counts with all the memory of which it is a view; on a CPU,
kernels between two calls of libraries are one function, at whose end all that they read is freed. In tests the account
is within 1 % of what generated programs hold, forward and backward, and a fifth of the limit is left to what it misses.
The limit starts from what Inductor would hold if nothing were scheduled, in the order that it would choose: where sizes
depend on data, one that knows nothing of them, since it is we who tell it. Two of Inductor's optimizations are off
under our backend and on under `plain`: keeping a freed block for a later buffer of its size (`allow_buffer_reuse`),
which no account knows of, and moving each node to just before its first reader (`reorder_for_locality`, in inference).
With skewed routing and no drops, data-dependent sizes are estimated as those of the rank that gets most rows.

Limits. The processors that compute also carry the bytes: a collective in flight costs them time, which the bound does
not count (reported where a target is missed). Where messages are large, TCP hands segments of 256 KiB to the link (BIG
TCP), which halves that. After a pause, a link lets 1.25 segments pass at once (80 KB with segments of 64 KiB), so that
the small messages of decode steps travel faster next to compute than alone. Where four hosts share two cores, compute
is measured the same way, four at a time; what one rank leaves idle another uses, so that hiding communication gains
less step time than on real hosts.
"""

OF_PIECES = ("hidden, in pieces", "over the floor", "unchanged model")
"""Targets whose figures are shown where they are met, too."""
ABLATION, PASS_ABLATION = "schedule_ablation.json", "pass_ablation.json"


def page(store: Store, json_name: str, picture: str | None, ablated: str = "") -> str:
    """The whole page; `ablated` are the sections of `ablations.py`."""
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
    of_passes, of_search = (json_path.with_name(one) for one in (PASS_ABLATION, ABLATION))
    replace(path, page(store, json_path.name, name, pass_ablation(of_passes) + search_ablation(of_search)))


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
    in_pieces = [f"- `{one.of}` {one.target}: {one.found}" for one in verdicts if one.met and one.target in OF_PIECES]
    lines += ["", "Met, of exchanges in pieces:", "", *in_pieces] if in_pieces else []
    return "\n".join([*lines, ""])


def _group(name: str, results: Sequence[Result]) -> str:
    apart = {"hidden fwd": "in fwd", "hidden bwd": "in bwd"} if results[0].at.group.phase == TRAINING else {}
    head = ["ratio", "variant", "step", "spread", "speed-up", "/ bound", "hidden", *apart]
    head += ["in flight", "covered", "peak"]
    machines = ", ".join(sorted({result.machine for result in results}))
    rows = []
    for result in results:
        for variant in ORDER:
            if variant in result.exposed:
                found = texts(result, variant)
                found |= {"ratio": f"{result.at.ratio:g}", "step": found["median"], "peak": f"{found['peak MB']} MB"}
                found["in flight"] = found["of"]
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
