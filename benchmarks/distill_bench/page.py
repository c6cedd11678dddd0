"""Writes docs/distillation.md and draws its picture: how far each row is above its teacher.

Contract: everything comes from the file of results, so that `--table` rewrites it without running anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common import markdown, picture, replace

from distill_bench.results import FrontPoint, FrontResult, Result, Results, above, judge_targets, mean, spread
from distill_bench.rows import FREED, PROFILE, RANKS

INK, LINE, GRID = "#1d2126", "#8a929b", "#e3e6ea"
COLORS = {"unhealed": "#d9480f", "healed": "#0b3d91", "healed-by-text": "#5b8def", "scratch": "#2b8a3e"}
INTRO = """\
# Accuracy: measured

Made by `benchmarks/distillation.py` from `{json}`; `--table` rewrites it without running anything.

Two models in the style of DeepSeek-V3 (latent attention, first layer dense, shared experts) and of Qwen3-MoE (no shared
experts), unmodified models of transformers, are trained on a dictionary of English (Debian's `dict-gcide`). The trained
original is the *teacher*; every other row has FarSkip connectivity.

- **loss**: cross-entropy on held-out text of the same source, nats per token, and its increase over the teacher's;
  **other domain** is that increase on quotations (Debian's `fortunes`). **KL** is from the teacher, **top-1** how often
  both find the same token most probable, both on held-out text.
- **load**: tokens of the fullest expert over the mean, averaged over the MoE layers; **moved**: fraction of the routed
  tokens that go to another expert than the teacher's, a lower bound from the loads. No loss balances the load here.
- **tokens**: what the row learned from, in addition to the teacher's tokens where it starts from the teacher;
  evaluations do not count. The best weights are chosen by other held-out text than the rows are judged by.
- Rows with several seeds: the mean and, after ±, half of the largest difference. A seed decides the order of the text
  and, from scratch, the initial weights. There is one teacher per model.

A tenth of the teacher's tokens is little here: a model of a million parameters that trains for ten minutes has seen a
few tokens per parameter, a production model some thousand. `healed-full-longer` has three tenths.

Healing is `farskip_compile.distill.self_distill` with the options that the rows name, the rest as in
`benchmarks/distill_bench/rows.py`: AdamW, cosine, {heal}.
What a run leaves on disk, and what is done about damaged files: [faults.md](faults.md#files-of-a-self-distillation).
"""


def write_page(results: Results, path: Path, json: Path, picture: Path | None) -> None:
    parts = [INTRO.format(json=json.name, heal=results.facts["healing"])]
    parts.append("".join(f"- {name}: {value}\n" for name, value in results.facts.items() if name != "healing"))
    parts.append(_targets(results))
    if picture is not None:
        parts.append(f"![Held-out loss of every row]({picture.name})\n")
    for model in results.models():
        rows = results.of(model)
        parts.append(f"## {model}\n")
        parts.append(_curve(rows))
        parts.append(_table(rows))
        if (front := results.front(model)) is not None:
            parts.append(_front(front))
        parts.append(_samples(rows))
    replace(path, "\n".join(part.rstrip() + "\n" for part in parts))


def _targets(results: Results) -> str:
    targets = judge_targets(results)
    rows = ([f"{one.of} {one.target}", f"{'met' if one.met else '**missed**'}: {one.found}"] for one in targets)
    return "\n".join(markdown("target | ", rows)) + "\n"


def _curve(rows: dict[str, list[Result]]) -> str:
    """Whether the teacher has converged, and what a difference between two trainings means."""
    (teacher,) = rows["teacher"]
    (earlier, before, _), (later, last, _) = teacher.history[-2:]
    text = (
        f"{teacher.parameters / 1e6:.2f} million parameters. The teacher saw {_tokens(teacher.tokens)} tokens, "
        f"{teacher.tokens / teacher.parameters:.1f} per parameter, and its held-out loss fell by "
        f"{before - last:.4f} in the last {later - earlier} of {teacher.steps} steps."
    )
    scratch = rows.get("scratch", [])
    if len(scratch) > 1:
        apart = spread(scratch, lambda one: one.judged["held_out"].loss) / teacher.judged["held_out"].loss
        text += (
            f" Trainings from scratch that differ in their seed alone end {apart:.1%} of the loss apart, and there is "
            "one teacher: a smaller difference between it and `scratch` is noise. Healed rows start from the teacher "
            "and are much closer together."
        )
    return text + "\n"


def _table(rows: dict[str, list[Result]]) -> str:
    teacher = rows["teacher"]
    head = "row | >sub-blocks rewired | >loss | >above teacher | >KL | >top-1 | >other domain | >load"
    lines = []
    for label, found in rows.items():
        own, other = (
            "" if label == "teacher" else f"{above(found, teacher, source):+.2%}"
            for source in ("held_out", "other_domain")
        )
        top1 = f"{mean(found, lambda one: one.judged['held_out'].top1):.1%}"
        load = f"{mean(found, lambda one: one.fullest):.2f}", f"{mean(found, lambda one: one.moved):.1%}"
        cells = [str(found[0].rewired), _several(found, "loss", 3), own, _several(found, "kl", 4), top1, other, *load]
        lines.append([_name(label, found[0]), *cells, _tokens(mean(found, lambda one: one.tokens))])
    return "\n".join(markdown(f"{head} | >moved | >tokens", lines)) + "\n"


def _name(label: str, row: Result) -> str:
    return label if row.row.layers is None else "{} (layers {} to {})".format(label, *row.row.layers)


def _several(rows: Sequence[Result], name: str, digits: int) -> str:
    text = f"{mean(rows, lambda one: getattr(one.judged['held_out'], name)):.{digits}f}"
    if len(rows) > 1:
        text += f" ± {spread(rows, lambda one: getattr(one.judged['held_out'], name)) / 2:.{digits}f}"
    return text


def _tokens(count: float) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k" if count else "0"


def _front(front: FrontResult) -> str:
    plan, whole = front.plan, front.whole
    text = (
        "The plan. Damage is the KL to the teacher before any healing, on the text by which weights are chosen; hidden "
        f"communication is an estimate at widths of real models, experts over {RANKS} ranks, profile `{PROFILE}` "
        f"(`distill_bench/run_row.py`, {front.estimates} estimates). `>` is the choice: {FREED:.0%} of what all "
        f"sub-blocks free, for the least damage. It rewires {len(plan.rows)} of {len(whole.rows)}: "
        f"{', '.join(plan.rows)}.\n"
    )
    rows = [_point(">" if number == front.chosen else "", point) for number, point in enumerate(front.points)]
    rows += [_point("all", whole)] if whole.rows != front.points[-1].rows else []
    head = " | >sub-blocks | >hidden | >freed | >damage, summed | >measured together"
    alone = ", ".join(f"{name} {kl:.4f}" for name, kl in sorted(front.damages.items(), key=lambda one: -one[1]))
    return "\n".join([text, *markdown(head, rows), f"\nEach sub-block alone, KL: {alone}.\n"])


def _point(mark: str, point: FrontPoint) -> list[str]:
    shares = [f"{share:.0%}" for share in (max(point.hidden, 0.0), point.freed)]
    return [mark, str(len(point.rows)), *shares, f"{point.damage:.4f}", f"{point.measured:.4f}"]


def _samples(rows: dict[str, list[Result]]) -> str:
    lines = ["Continuations, the most probable token each time (`model.generate`, with a cache):\n"]
    shown = {label: found[0].samples for label, found in rows.items() if found[0].samples}
    if not shown:
        return ""
    for number, (prompt, _) in enumerate(next(iter(shown.values()))):
        lines.append(f"> {_line(prompt)}\n")
        lines += [f"- {label}: {_line(samples[number][1])}" for label, samples in shown.items()]
        lines.append("")
    return "\n".join(lines)


def _line(text: str) -> str:
    return "`" + " ".join(text.split()).replace("`", "'") + "`"


# The picture


def write_plot(results: Results, path: Path) -> None:
    models = results.models()
    with picture(path, 1, len(models), (5.4 * len(models), 4.8)) as (_, grid):
        for axes, model in zip(grid[0], models, strict=True):
            rows = results.of(model)
            teacher = rows.pop("teacher")
            labels = list(rows)[::-1]
            for place, label in enumerate(labels):
                found = rows[label]
                value = 100 * above(found, teacher)
                axes.barh(place, value, color=_color(found[0], label), height=0.66)
                seeds = [100 * above([one], teacher) for one in found]
                if len(found) > 1:
                    axes.plot(seeds, [place] * len(found), ".", color=INK, ms=4)
                where, text = (max(0.0, value, *seeds), place), f"{value:+.1f} %"
                style = {"textcoords": "offset points", "va": "center", "color": INK, "fontsize": 8}
                axes.annotate(text, where, xytext=(6, 0), **style)
            axes.set_yticks(range(len(labels)), labels, fontsize=9)
            axes.set_title(model, loc="left", fontsize=11)
            axes.set_xlabel("held-out loss above the teacher's, %")
            axes.margins(x=0.14)
            axes.axvline(0, color=LINE, linewidth=1)
            axes.grid(axis="x", color=GRID, linewidth=0.8)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)


def _color(row: Result, label: str) -> str:
    return COLORS["healed-by-text" if label.startswith("healed-by-text") else row.row.kind]
