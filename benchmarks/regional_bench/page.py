# SPDX-License-Identifier: Apache-2.0
"""Writes docs/regional.md from the file of results.

Contract: everything on the page comes from the file, so that `--table` rewrites it without measuring. A part that has
not been measured is said to be missing, with the command that measures it; without any results no page is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common import Target, markdown, replace
from overlap_bench.cells import COMMUNICATION, COMPUTE, FULL, TIMED, TRAINING
from overlap_bench.results import Result
from overlap_bench.terminal import MOST_OTHERS, checks_text, ms, percent

from regional_bench import compiled, sharded, stepped
from regional_bench.compiled import WHOLE, Compiled
from regional_bench.results import COMPILE, MEMORY, STEPS, Store
from regional_bench.sharded import Sharded
from regional_bench.targets import PLAIN_OF, gain, judge

INTRO = """\
# Layers compiled one by one: measured

Made by `benchmarks/regional.py` from `{json}`; `--table` rewrites it without measuring.

*Regional* is `farskip_compile.regional(model)`: the repeated layers are compiled one by one, alike ones together, and
the routed experts' combine is carried in flight from one layer's graph into the next. *Whole graph* is
`torch.compile(model, backend="farskip", fullgraph=True)`. The plain forms of both are Inductor's own:
`layer.compile(backend="inductor", fullgraph=True)` for each layer, and `torch.compile(model, fullgraph=True)`.
"""
COMPILES = """\
## Compile time

DeepSeek-V3 style with tiny widths, the first three layers dense, experts over {ranks} fake ranks, one thread.
*Prefill* is a forward pass under `no_grad`; *training* a forward and a backward pass. *Cold* is the first step of a
fresh process with an empty cache folder, *warm* that of another one with what the first left there; importing and
building the model are not in them, what Inductor prepares once in an empty folder is, and *prepared* says how much of
*cold* that was. *Later* is the next step of the cold process. *Graphs* are those that Dynamo captured, *loaded* those
of Inductor's that came from its cache when warm (forward and backward apart). Each figure is one measurement.
"""
CELLS = """\
## Step time

Measured as in [benchmarks.md](benchmarks.md), which explains *hidden*, *in flight*, *bound* and *peak*: two hosts, each
a network namespace with a limited rate, for which communication alone takes *ratio* times as long as compute alone; all
variants interleaved in one process on each host; medians of the slowest rank, with interquartile range. *Over plain* is
the speed-up over the plain form: of what is compiled by layer, plain Inductor by layer; of the rest, and of plain
Inductor by layer itself, plain Inductor on the whole graph. `full` is our whole graph, `full, by layer` regional;
`hand-written` is the FarSkip form written by hand, compiled by Inductor, with which all of ours are compared. By layer,
the embedding, the last norm and the head run in eager mode.
"""
MEMORY_TEXT = """\
## Memory

DeepSeek-V3 style, {layers} layers, hidden size {hidden}, {ranks} ranks, experts spread over them, all else sharded by
FSDP2, a group for each layer; compiled layer by layer. *Parameters* are a rank's shards and experts, *step* the most
bytes that a training step holds over them, gradients among them: that of the rank that holds most.
"""
MISSING = "Not measured yet: `python benchmarks/regional.py --{part}`.\n"


def page(store: Store, json_name: str) -> str:
    """The whole page."""
    verdicts = judge(store.compiles, store.cells_in_order(), store.sharded)
    parts = [INTRO.format(json=json_name), "\n".join(["## Targets", "", *target_lines(verdicts), ""])]
    parts += [COMPILES.format(ranks=compiled.RANKS), *_facts(store, COMPILE)]
    parts.append(_compiles(store.in_order()) if store.compiles else MISSING.format(part=COMPILE))
    parts += [CELLS, *_facts(store, STEPS)]
    parts += [_cell(one) for one in store.cells_in_order()] or [MISSING.format(part=STEPS)]
    sizes = sharded.SIZES
    text = MEMORY_TEXT.format(layers=len(sizes["layers"]), hidden=sizes["hidden_size"], ranks=sharded.RANKS)
    parts += [text, *_facts(store, MEMORY)]
    parts.append(_memory(list(store.sharded.values())) if store.sharded else MISSING.format(part=MEMORY))
    return "\n".join(parts)


def write_page(store: Store, path: Path, json_path: Path) -> None:
    replace(path, page(store, json_path.name))


def target_lines(verdicts: Sequence[Target]) -> list[str]:
    lines = [f"- {'met' if one.met else 'MISSED'}: {one.of}: {one.target}: {one.found}" for one in verdicts]
    return lines or ["Nothing that a target is for has been measured yet."]


def _facts(store: Store, part: str) -> list[str]:
    """Of the last run, and what of its grid is missing."""
    lines = [f"- {name}: {text}" for name, text in store.facts.get(part, {}).items()]
    if part == COMPILE and store.compiles:
        wanted = compiled.tasks(compiled.PHASES, compiled.LAYERS)
        missing = [
            f"{form}, {layers} layers, {phase}"
            for phase, form, layers in wanted
            if not _has(store, phase, form, layers)
        ]
        lines += [f"- not measured: {'; '.join(missing)}"] if missing else []
    if part == STEPS and store.cells:
        missing = [f"`{cell}`" for cell in stepped.grid() if str(cell) not in store.cells]
        lines += [f"- not measured: {', '.join(missing)}"] if missing else []
    return ["\n".join(lines) + "\n"] if lines else []


def _has(store: Store, *key: object) -> bool:
    return key in store.compiles


def _compiles(found: Sequence[Compiled]) -> str:
    whole = {(one.phase, one.layers): one for one in found if one.form == WHOLE}
    rows = []
    for one in found:
        base = whole.get((one.phase, one.layers))
        parts = [one.cold.seconds / base.cold.seconds, one.warm.seconds / base.warm.seconds] if base else []
        shares = [f"{part:.3f}" for part in parts] or ["-", "-"]
        seconds = [f"{part:.1f} s" for part in (one.cold.seconds, one.cold.prepared, one.warm.seconds)]
        counts = [ms(one.cold.later), str(one.cold.graphs), str(one.warm.loaded)]
        rows.append([one.phase, str(one.layers), one.form, *seconds, *shares, *counts])
    head = "phase | >layers | form | >cold | >prepared | >warm | >cold / whole graph's | >warm / whole graph's"
    return "\n".join([*markdown(f"{head} | >later | >graphs | >loaded", rows), ""])


def _memory(found: Sequence[Sharded]) -> str:
    plain = {one.checkpointed: one for one in found if one.form == sharded.PLAIN}
    rows = []
    for one in found:
        base = plain.get(one.checkpointed)
        over = [f"{100 * (ours / theirs - 1):+.1f} %" for ours, theirs in _pairs(one, base)] if base else ["-", "-"]
        sizes = [f"{size / 1e6:.1f} MB" for size in (one.parameters, one.peak, one.held)]
        rows.append([one.form, "full" if one.checkpointed else "none", *sizes, *over])
    head = "form | checkpoints | >parameters | >step | >both | >both over plain | >step over plain"
    return "\n".join([*markdown(head, rows), ""])


def _pairs(one: Sharded, base: Sharded) -> list[tuple[int, int]]:
    return [(one.held, base.held), (one.peak, base.peak)]


def _cell(cell: Result) -> str:
    apart = ("forward", "backward") if cell.at.group.phase == TRAINING else ()
    head = ["variant", ">step", ">spread", ">over plain", ">hidden", *(f">in {part}" for part in apart)]
    rows = []
    for name in (name for name in TIMED if name in cell.exposed):
        timing = cell.timings[name]
        over = f"{1 + gain(cell, name):.3f} x" if name in PLAIN_OF else "-"
        shares = [percent(cell.hidden(name, part)) for part in (None, *apart)]
        flying = [ms(cell.exposed[name]["communication"]), f"{cell.peak_bytes[name] / 1e6:.3g} MB"]
        text = f"**{name}**" if name.startswith(FULL) else name
        rows.append([text, ms(timing.median), ms(timing.spread), over, *shares, *flying])
    rate = "NO NETWORK: loopback" if cell.rate is None else cell.network
    notes = [
        f"{cell.about}; {cell.cores}; {cell.machine}; {cell.when}",
        f"ratio {cell.at.ratio:g} ({cell.ratio:.2f} reached): {rate}; compute {ms(cell.timings[COMPUTE].median)}, "
        f"communication {ms(cell.timings[COMMUNICATION].median)}, bound {ms(cell.bound)}",
        checks_text(cell),
    ]
    if cell.others > MOST_OTHERS:
        notes.append(f"OTHER PROCESSES KEPT {cell.others:.2f} CORES BUSY")
    table = markdown(" | ".join([*head, ">in flight", ">peak"]), rows)
    return "\n".join([f"### {cell.cell}", "", *table, "", *(f"- {note}." for note in notes), ""])
