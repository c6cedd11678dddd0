# SPDX-License-Identifier: Apache-2.0
"""The page made of one run's file.

Contract: everything comes from the file, so that `--table` rewrites it without measuring. A page of a dry run says in
its title, in its first paragraph and in the heading of every section that nothing in it is a figure of a GPU. What was
not measured is said to be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from common import markdown, replace

from gpu_bench.results import Calibrated, Correct, Cost, Graphs, Link, Machine, Order, Results, Times
from gpu_bench.targets import judge

DRY = " (dry run on a CPU)"
INTRO = """\
Made by `benchmarks/gpu.py` from `{json}`; `--table` rewrites it without measuring.
"""
DRY_INTRO = """\
This is a dry run on a CPU: every part has run, tiny, and **no figure below says anything about a GPU**.
"""
COST = """\
Connectivity "none", which changes nothing that is computed, against plain Inductor; both in turn. Peak: allocated.
"""
LINKS = """\
One real rank of a group whose other ranks are imagined. A collective follows the current stream on a stream of its own,
copies what it moves, and then keeps a kernel busy by the GPU's clock for alpha + bytes (n-1)/n / bandwidth; a wait is
an event. That is honest about streams, order and the host, not about ranks that are late or protocols. *Ratio* is all
communication over plain Inductor's step without it; schedules are made for 0.5. *Free* is the same code over a link
that takes no time; *exposed* what the step takes longer than that; *bound* the larger of free and wire. *Blocks* of
1024 threads stay busy during a collective; 0 is one of 32 threads. The model, why it is this one, and what memory our
backend may add: `benchmarks/gpu_bench/sizes.py`.
"""
ORDER = """\
L launch, W wait, m product, A attention, k kernel, o other operator, as the program calls them. *Under* each launch are
the products and attentions until its wait.
"""
RIGHT = """\
How far off, over the largest number of the right result; *gradient* is that of the parameter that is furthest off.
"""
GRAPHS = """\
Prefill of a small model with `mode="reduce-overhead"`, among a group of one rank. *Off*: from the same without graphs.
"""


def page(results: Results, json_name: str) -> str:
    """The whole page."""
    dry = DRY if results.dry else ""
    head = f"# On a GPU: {'not measured' if results.dry else 'measured'}{dry}\n"
    facts = "\n".join(f"- {name}: {text}" for name, text in results.facts.items()) + "\n"
    verdicts = [f"- {one.line().strip()}" for one in judge(results)]
    sections: tuple[tuple[str, str, Callable[[Results], list[str]]], ...] = (
        ("Targets", "", lambda _: verdicts),
        ("Machine", "", _machine),
        ("Cost with nothing to hide", COST, _cost),
        ("Over an emulated link", LINKS, _links),
        ("Order in the programs", ORDER, _order),
        (
            "Against eager",
            RIGHT,
            _right,
        ),
        ("CUDA graphs", GRAPHS, _graphs),
        ("Calibration", "", _calibrated),
    )
    parts = [head, INTRO.format(json=json_name), DRY_INTRO if results.dry else "", facts]
    for title, text, lines in sections:
        parts += [f"## {title}{dry}\n", text, "\n".join(lines(results) or ["Not measured in this run."]) + "\n"]
    return "\n".join(part for part in parts if part)


def write_page(results: Results, path: Path, json_path: Path) -> None:
    replace(path, page(results, json_path.name))


def _machine(results: Results) -> list[str]:
    lines = []
    for row in results.rows(Machine):
        lines += [f"- {row.device}; {', '.join(f'{name} {text}' for name, text in row.versions.items())}"]
        lines += [f"- {name}: {_rate(value, name)}" for name, value in row.rates.items()]
        lines += [f"- a collective of {1e6 * float(asked):g} us takes {1e6 * took:.1f} us, with its launch"
                  for asked, took in row.spins.items()]  # fmt: skip
    return lines


def _rate(value: float, name: str) -> str:
    return f"{value / 1e9:.4g} GB/s" if name == "copy" else f"{value / 1e12:.4g} TFLOP/s"


def _cost(results: Results) -> list[str]:
    rows = [
        (r.group, r.phase, _ms(r.plain), _ms(r.ours), f"{r.ratio:.3f} x", _gb(r.plain_peak), _gb(r.ours_peak))
        for r in results.rows(Cost)
    ]
    return _table("group | phase | >plain | >ours | >ratio | >plain's peak | >our peak", rows)


def _links(results: Results) -> list[str]:
    rows = [
        (
            *(r.phase, f"{r.ratio:g}", str(r.blocks), r.variant, _ms(r.free), f"{1e3 * r.wire:.2f} ms", _ms(r.step)),
            *(f"{1e3 * r.exposed:.2f} ms", f"{100 * r.hidden:.1f} %", f"{r.step.median / r.bound:.3f} x"),
        )
        for r in sorted(results.rows(Link), key=lambda r: (r.phase, r.blocks, r.ratio))
    ]
    names = "phase | >ratio | >blocks | variant | >free | >wire | >step | >exposed | >hidden | >over the bound"
    return _table(names, rows)


def _order(results: Results) -> list[str]:
    known = {True: "yes", False: "NO", None: ""}
    rows = [
        (r.phase, r.variant, r.graph, f"`{r.calls}`", " ".join(map(str, r.hidden)), known[r.as_decided])
        for r in results.rows(Order)
    ]
    return _table("phase | variant | graph | calls | under | as decided", rows)


def _right(results: Results) -> list[str]:
    rows = [
        (
            *(r.mode, r.dtype, f"{r.output:.1e}", f"{r.gradient:.1e}", r.worst),
            "" if r.plain_output is None else f"{r.plain_output:.1e}, {r.plain_gradient:.1e}",
        )
        for r in results.rows(Correct)
    ]
    return _table("parallel | type | >output | >gradient | of | >plain Inductor", rows)


def _graphs(results: Results) -> list[str]:
    rows = [
        (
            *(r.variant, _ms(r.without), _ms(r.graphs), f"{r.without.median / r.graphs.median:.2f} x"),
            *(f"{r.off:.1e}", "the same" if r.same else "OTHER", str(r.skipped)),
        )
        for r in results.rows(Graphs)
    ]
    return _table("variant | >without | >with graphs | >speed-up | >off | bits of replays | >graphs left out", rows)


def _calibrated(results: Results) -> list[str]:
    lines = []
    for row in results.rows(Calibrated):
        lines += [f"- `{row.command}`: {row.points} points in {row.seconds:.0f} s"]
        lines += [f"- {name}: {value:.4g}" for name, value in row.figures.items()]
        lines += [f"- note: {note}" for note in row.notes]
    return lines


def _table(names: str, rows: Iterable[tuple[str, ...]]) -> list[str]:
    """No head without rows."""
    found = list(rows)
    return markdown(names, found) if found else []


def _ms(times: Times) -> str:
    return f"{1e3 * times.median:.2f} ms ({1e3 * times.least:.2f} to {1e3 * times.most:.2f})"


def _gb(size: int | None) -> str:
    return "" if size is None else f"{size / 1e9:.2f} GB"
