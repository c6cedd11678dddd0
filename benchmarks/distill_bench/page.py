# SPDX-License-Identifier: Apache-2.0
"""Writes docs/distillation.md: how near each row is to its teacher.

Contract: everything comes from the file of results, so that `--table` rewrites it without running anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common import Target, markdown, replace

from distill_bench.results import FrontPoint, FrontResult, Result, Results
from distill_bench.rows import FREED, PROFILE, RANKS
from distill_bench.targets import Figure, Rows, judge_healed, judge_targets, plan_damage, summary

SHOWN = ("teacher", "unhealed-full", "folded-full", "paper-full", "best-full")
"""Rows whose continuations are on the page."""
INTRO = """\
# Accuracy: measured

Made by `benchmarks/distillation.py` from `{json}`; `--table` rewrites it without running anything.

Two models in the style of DeepSeek-V3 (latent attention, first layer dense, shared experts) and of Qwen3-MoE (no shared
experts), unmodified models of transformers, are trained on two corpora: the entries of a dictionary of English, and the
documentation of Linux. The trained original is the *teacher*. Every other row starts from a teacher and, unless it is a
`control`, has FarSkip connectivity.

| row | what it is |
|---|---|
| `unhealed` | the teacher's weights, rewired |
| `folded` | after the fold alone: closed form, no training (`farskip_compile.healing.fold`) |
| `paper` | healed by KL to the teacher, batches of 8 sequences (arXiv 2511.11505, section 3.1) |
| `fold+paper` | the fold, then the same |
| `best` | the fold, then batches of 4 sequences, and KL with a decaying match of the stream |
| `text` | healed by the text alone |
| `control` | the teacher, not rewired, trained on by the text with the optimizer of `paper` |

A number after a name is the part of the teacher's tokens in per cent; without one it is a tenth. Tokens that
calibrate a fold count: a fold alone has 16 k of them, one that is trained afterwards 4 k.

- **KL** is from the teacher, nats per token; **repaired**: how much of the unhealed row's KL is gone; **top-1**: how
  often both find the same token most probable; **bits per byte** of the text; all on held-out text.
- **above teacher**: relative increase of the held-out loss. **s.e.**: its standard error by the choice of the text,
  from the differences between row and teacher over {batches} batches of neighbouring sequences. The loss can be lowered
  without getting nearer to the teacher (`text`), so KL comes first.
- **elsewhere**: KL on the held-out text of the other corpus.
- **moved**: fraction of the routed tokens that go to another expert than the teacher's, a lower bound from the loads.
- ±: standard deviation over teachers, which differ in their seed: initial weights and order of the text. Rows that
  start from them have another seed, so they do not read the text in the teacher's order.
- Held out by document: documents are sorted by a hash of their content. The first ones judge rows, others choose the
  best weights of a run, the rest is trained on; so each part is spread over the whole source. No document is in two.

Left out for want of time: DeepSeek-V3's style on the second corpus, with 30 % and under `attention`, `mlp` and `lag2`;
`paper` and `control` of more than one teacher; trainings from scratch under `full`, which in an earlier version of this
experiment (half of the tokens) ended 0.2 % below and 1.7 % above the teacher, where another seed alone made 1.6 to
1.8 %. Without shared experts, `ladder` is `full`. Learning rates: that of the
teacher and of `paper` from earlier versions of this experiment; that of `best`, its stream's weight and its batch are
one of seven choices that were tried on one other teacher (Qwen3-MoE's style, 2.8 M tokens, the dictionary) and judged
by held-out text: all seven ended between KL 0.0526 and 0.0555, and this one is the cheapest. With the first teacher of
DeepSeek-V3's style here, 1.5e-3 and 4e-3 in place of its 2.5e-3 end at 0.0966 and 0.0880.

What a run leaves on disk, and what is done about damaged files: [faults.md](faults.md#files-of-a-self-distillation).
"""


def write_page(results: Results, path: Path, json: Path, picture: Path | None, larger: Results | None = None) -> None:
    """`larger`: the main rows of models of another size (`distillation.py --larger`), a section of their own."""
    facts = dict(results.facts)
    parts = [INTRO.format(json=json.name, batches=facts.pop("batches"))]
    parts.append("".join(f"- {name}: {value}\n" for name, value in facts.items()))
    parts.append(_targets(results))
    if picture is not None:
        parts.append(f"![KL repaired, and loss above the teacher's, over tokens]({picture.name})\n")
    for setting in results.settings():
        rows = results.of(setting)
        parts.append(f"## {setting[0]}, {setting[1]}\n")
        parts.append(_about(rows))
        parts.append(_table(rows))
        parts.append(_connectivities(rows))
        if (front := results.front(setting)) is not None:
            parts.append(_front(front, rows))
        if setting[1] == results.settings()[0][1]:
            parts.append(_samples(rows))
    if larger is not None:
        parts += _larger(larger)
    replace(path, "\n".join(part.rstrip() + "\n" for part in parts if part))


def _larger(results: Results) -> list[str]:
    """What remains of the damage in larger models, under the same recipes."""
    about = (
        "## Larger models\n\n"
        "The main rows of models of another size, by `distillation.py --larger`. Teachers of this size that had seen "
        "half of the tokens were damaged half as much (DeepSeek-V3's style: KL 0.32 unhealed, Qwen3-MoE's: 0.70), and "
        "`best-full` ended 1.3 and 1.7 % above them: the better a teacher is trained, the more there is to heal.\n"
    )
    facts = "".join(f"- {name}: {value}\n" for name, value in results.facts.items() if name != "batches")
    parts = [about, facts, _target_lines(judge_healed(results))]
    for setting in results.settings():
        rows = results.of(setting)
        parts += [f"### {setting[0]}, {setting[1]}, larger\n", _about(rows), _table(rows)]
    return parts


def _targets(results: Results) -> str:
    return _target_lines(judge_targets(results))


def _target_lines(targets: Sequence[Target]) -> str:
    rows = ([f"{one.of} {one.target}", f"{'met' if one.met else '**missed**'}: {one.found}"] for one in targets)
    return "\n".join(markdown("target | ", rows)) + "\n"


def _about(rows: Rows) -> str:
    """How far the teacher has converged, by what more tokens bring."""
    teacher = rows["teacher"][0]
    text = (
        f"{teacher.parameters / 1e6:.2f} million parameters, {len(rows['teacher'])} "
        f"teacher{'s' if len(rows['teacher']) > 1 else ''}. A teacher saw {_tokens(teacher.tokens)} tokens, "
        f"{teacher.tokens / teacher.parameters:.1f} per parameter."
    )
    last = [
        (one.history[-1][1] / found[1] - 1, 1 - found[0] / one.history[-1][0])
        for one in rows["teacher"]
        if (found := _before(one)) is not None
    ]
    if last:
        fall, part = (sum(some) / len(last) for some in zip(*last, strict=True))
        text += f" In the last {part:.0%} of the steps its loss on the text that chooses changed by {fall:+.2%}."
    controls = [(rows[label][0].row.part, label) for label in rows if label.startswith("control")]
    said = []
    for part, label in sorted(controls):
        found = summary(rows, label)
        last = [one.history[-1][1] / one.history[0][1] - 1 for one in rows[label] if one.history]
        if found is not None and last:
            said.append(f"{part:.0%}: {found.above.mean:+.2%}, {sum(last) / len(last):+.2%} at the last step")
    if said:
        text += (
            " Trained on by the text, from a new start of the learning rate, the teacher itself gets to: "
            f"{'; '.join(said)} (the best weights on the text that judges; the last ones on the text that chooses)."
        )
    best, control = summary(rows, "best-full"), summary(rows, "control")
    if best is not None and control is not None:
        text += f" `best-full` is {best.above.mean - control.above.mean:+.2%} from that control."
    return text + "\n"


def _before(one: Result) -> tuple[int, float] | None:
    """Step and loss of the last evaluation but one; None: fewer than three."""
    return one.history[-2][:2] if len(one.history) > 2 else None


def _table(rows: Rows) -> str:
    head = "row | >tokens | >KL | >repaired | >top-1 | >bits per byte | >above teacher | >s.e. | >KL elsewhere | >moved"
    lines = []
    for label, found in rows.items():
        one = summary(rows, label)
        if one is None or found[0].row.connectivity not in ("full", "none"):
            continue
        elsewhere = summary(rows, label, "elsewhere") if "elsewhere" in found[0].judged else None
        moved = sum(each.moved for each in found) / len(found)
        same = label == "teacher"
        lines.append(
            [
                label,
                _tokens(sum(each.tokens for each in found) / len(found)),
                "" if same else one.kl.text(".4f"),
                _or_nothing(one.repaired, ".1%"),
                "" if same else one.top1.text(".1%", plus_minus=False),
                one.bits.text(".3f"),
                "" if same else one.above.text("+.2%"),
                "" if same else f"{one.error:.2%}",
                "" if same or elsewhere is None else elsewhere.kl.text(".4f", plus_minus=False),
                "" if same else f"{moved:.1%}",
            ]
        )
    return "\n".join(markdown(head, lines)) + "\n"


def _connectivities(rows: Rows) -> str:
    """One line for each connectivity."""
    names = [found[0].row.connectivity for label, found in rows.items() if label.startswith("unhealed-")]
    head = (
        "connectivity | >sub-blocks | >KL unhealed | >folded | >best | >repaired by the fold | >by best "
        "| >unhealed, above teacher | >folded | >best | >s.e."
    )
    lines = []
    for name in names:
        unhealed, folded, best = (summary(rows, f"{kind}-{name}") for kind in ("unhealed", "folded", "best"))
        if unhealed is None or folded is None or best is None:
            continue
        three = (unhealed, folded, best)
        lines.append(
            [
                name,
                str(rows[f"unhealed-{name}"][0].rewired),
                *(one.kl.text(".4f", plus_minus=False) for one in three),
                *(_or_nothing(one.repaired, ".1%", plus_minus=False) for one in (folded, best)),
                *(one.above.text("+.2%", plus_minus=False) for one in three),
                f"{best.error:.2%}",
            ]
        )
    if len(lines) < 2:
        return ""
    about = "Connectivities, with a tenth of the tokens (`full`: all teachers, the others: the first one):\n"
    return "\n".join([about, *markdown(head, lines)]) + "\n"


def _or_nothing(figure: Figure | None, form: str, *, plus_minus: bool = True) -> str:
    return "" if figure is None else figure.text(form, plus_minus=plus_minus)


def _tokens(count: float) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k" if count else "0"


def _front(front: FrontResult, rows: Rows) -> str:
    plan, whole = front.plan, front.whole
    text = (
        "The plan. Damage is the KL to the teacher before fold and healing, on the text by which weights are chosen; "
        f"hidden communication is an estimate at widths of real models, experts over {RANKS} ranks, profile "
        f"`{PROFILE}` (`distill_bench/run_row.py`, {front.estimates} estimates). `>` is the choice: {FREED:.0%} of "
        f"what all sub-blocks free, for the least damage. It rewires {len(plan.rows)} of {len(whole.rows)}: "
        f"{', '.join(plan.rows)}."
    )
    if (damage := plan_damage(rows)) is not None:
        text += f" After the fold, its KL is {damage:.0%} of that of all of them without one, on the text that judges."
    lines = [_point(">" if number == front.chosen else "", point) for number, point in enumerate(front.points)]
    lines += [_point("all", whole)] if whole.rows != front.points[-1].rows else []
    head = " | >sub-blocks | >hidden | >freed | >damage, summed | >measured together"
    alone = ", ".join(f"{name} {kl:.4f}" for name, kl in sorted(front.damages.items(), key=lambda one: -one[1]))
    return "\n".join([f"{text}\n", *markdown(head, lines), f"\nEach sub-block alone, KL: {alone}.\n"])


def _point(mark: str, point: FrontPoint) -> list[str]:
    shares = [f"{share:.0%}" for share in (max(point.hidden, 0.0), point.freed)]
    return [mark, str(len(point.rows)), *shares, f"{point.damage:.4f}", f"{point.measured:.4f}"]


def _samples(rows: Rows) -> str:
    lines = ["Continuations, the most probable token each time (`model.generate`, with a cache):\n"]
    shown = {label: rows[label][0].samples for label in SHOWN if label in rows and rows[label][0].samples}
    if not shown:
        return ""
    for number, (prompt, _) in enumerate(next(iter(shown.values()))):
        lines.append(f"> {_line(prompt)}\n")
        lines += [f"- {label}: {_line(samples[number][1])}" for label, samples in shown.items()]
        lines.append("")
    return "\n".join(lines)


def _line(text: str) -> str:
    return "`" + " ".join(text.split()).replace("`", "'") + "`"


def curve(rows: Rows, recipe: str, connectivity: str = "full") -> list[tuple[Result, ...]]:
    """The rows of a recipe, or the controls, by tokens: those of each part together."""
    found = [some for some in rows.values() if some[0].row.kind in ("healed", "control")]
    if recipe == "control":
        wanted = [some for some in found if some[0].row.kind == "control"]
    else:
        same = (recipe, connectivity, "healed")
        wanted = [some for some in found if (some[0].row.recipe, some[0].row.connectivity, some[0].row.kind) == same]
    return [tuple(some) for some in sorted(wanted, key=lambda some: some[0].row.part)]
