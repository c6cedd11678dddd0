# SPDX-License-Identifier: Apache-2.0
"""What the experiment of benchmarks/distillation.py makes of its results: means, targets, a file, a page, a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("datasets")

import distillation
from common import RecordsError
from distill_bench.architectures import MODELS
from distill_bench.page import write_page
from distill_bench.plot import write_plot
from distill_bench.results import FrontPoint, FrontResult, Judged, Result, Results
from distill_bench.rows import Row
from distill_bench.targets import judge_healing, judge_targets, summary, targets_text

from tests.pictures import assert_readable, kept_figures


def result(name: str, kind="healed", loss=3.0, kl=0.0, connectivity="full", model="deepseek_v3", **more) -> Result:
    part = more.pop("part", 0.1)
    recipe = name.partition("-")[0] if kind == "healed" else ""
    row = Row(model, "dictionary", name, kind, int(name.partition("@")[2]), connectivity, recipe, part)
    judged = {
        source: Judged(loss + extra, kl, 0.9, 2.0, 0.003) for source, extra in (("held_out", 0), ("elsewhere", 1))
    }
    defaults = {"history": [(0, 9.0, None), (10, loss, None)], "tokens": 100}
    defaults |= more
    tokens = 1000 * defaults.pop("tokens")
    return Result(row, "", judged, 1.5, 0.1, 15, 10, 10, tokens, 1.0, 1_000_000, **defaults)


def front(freed: float) -> FrontResult:
    row = Row("deepseek_v3", "dictionary", "front@0", "front")
    none, plan, whole = (
        FrontPoint((), 0.0, 0.0, 0.1, 0.0),
        FrontPoint(("moe.3",), 0.1, 0.1, 0.6, freed),
        FrontPoint(("moe.3", "attention.2"), 0.5, 0.4, 0.7, 1.0),
    )
    return FrontResult(row, "", [none, plan], 1, whole, {"moe.3": 0.1, "attention.2": 0.4}, {"moe.3": ["a3"]}, 4, 1.0)


GOOD: dict[str, float] = {"folded": 0.2, "freed": 0.8, "plan": 0.13, "tokens": 10}


def made_up(losses=(3.02, 3.03), kls=(0.02, 0.04), **more) -> Results:
    """Two teachers; rows of the second one are worse in everything, and so is their teacher."""
    more = {**GOOD, **more}
    rows = []
    for seed, (loss, kl) in enumerate(zip(losses, kls, strict=True)):
        rows += [
            result(
                f"teacher@{seed}",
                "teacher",
                3.0 + 0.01 * seed,
                samples=[("a prompt", "goes `on`")],
                history=[(0, 9.0, None), (90, 3.06, None), (100, 3.0, None)],
            ),
            result(f"unhealed-full@{seed}", "unhealed", 3.4, 0.4 + 0.2 * seed),
            result(f"folded-full@{seed}", "folded", 3.2, more["folded"], tokens=4),
            result(f"best-full@{seed}", "healed", loss, kl, tokens=more["tokens"]),
            result(f"best-full-30@{seed}", "healed", loss, kl, tokens=30, part=0.3),
            result(f"control@{seed}", "control", 2.99, 0.01, "none", tokens=10),
        ]
    rows += [
        result("text-full@0", "healed", 3.1, 0.3),
        result("unhealed-plan@0", "unhealed", 3.2, 0.2, "plan"),
        result("folded-plan@0", "folded", 3.1, more["plan"], "plan"),
        result("best-plan@0", "healed", 3.01, 0.01, "plan"),
    ]
    return Results({"machine": "none", "batches": 32}, rows, [front(more["freed"])])


def test_rows_are_compared_with_their_own_teacher():
    rows = made_up().of(("deepseek_v3", "dictionary"))
    found = summary(rows, "best-full")
    assert found.above.mean == pytest.approx((3.02 / 3.0 + 3.03 / 3.01) / 2 - 1)
    assert found.above.deviation == pytest.approx(abs(3.02 / 3.0 - 3.03 / 3.01) / 2**0.5)
    assert found.repaired.mean == pytest.approx(((1 - 0.02 / 0.4) + (1 - 0.04 / 0.6)) / 2)
    assert found.error == pytest.approx((0.003 / 3.0 + 0.003 / 3.01) / 2)
    assert found.tokens == pytest.approx(0.1)
    assert summary(rows, "best-plan").repaired.mean == pytest.approx(1 - 0.01 / 0.2)  # of what the plan damages
    assert summary(rows, "control").repaired is None
    assert summary(rows, "nothing") is None


@pytest.mark.parametrize(
    ("results", "missed"),
    [
        (made_up(), []),
        (made_up(losses=(3.025, 3.04)), []),  # 0.83 and 1.00 %
        (made_up(losses=(3.04, 3.04)), [0]),
        (made_up(kls=(0.02, 0.09)), [1]),  # 95 and 85 %
        (made_up(tokens=11), [2]),
        (made_up(folded=0.3), [3]),  # 25 and 50 %
        (made_up(freed=0.79), [4]),
        (made_up(plan=0.14), [4]),
        (Results({}, [result("teacher@0", "teacher")], []), [0, 1, 2, 3, 4]),
    ],
)
def test_targets(results, missed):
    targets = judge_targets(results)
    assert [number for number, target in enumerate(targets) if not target.met] == missed
    assert targets_text(targets).count("MISSED") == len(missed)


@pytest.mark.parametrize("model", MODELS)
def test_without_shared_experts_more_is_allowed(model):
    rows = [result("teacher@0", "teacher", model=model), result("best-full@0", loss=3.033, model=model)]
    assert judge_targets(Results({}, rows, []))[0].met == (model == "qwen3_moe")  # 1.1 %


@pytest.mark.parametrize(
    ("kls", "met"),
    [
        ({"best": 0.1, "folded": 0.2, "unhealed": 0.3, "text": 0.25}, True),
        ({"best": 0.2, "folded": 0.1, "unhealed": 0.3, "text": 0.25}, False),
        ({"best": 0.1, "folded": 0.4, "unhealed": 0.3, "text": 0.25}, False),
        ({"best": 0.1, "folded": 0.2, "unhealed": 0.3, "text": 0.05}, False),
        ({"best": 0.1, "folded": 0.2, "unhealed": 0.3}, False),
    ],
)
def test_healing_must_heal_at_any_scale(kls, met):
    kinds = {"folded": "folded", "unhealed": "unhealed"}
    rows = [result("teacher@0", "teacher")]
    rows += [result(f"{name}-full@0", kinds.get(name, "healed"), kl=kl) for name, kl in kls.items()]
    (target,) = judge_healing(Results({}, rows, []))
    assert target.met == met


def test_results_on_disk(tmp_path):
    path = tmp_path / "results.json"
    made_up().write(path)
    assert Results.load(path) == made_up()
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 0}))
    with pytest.raises(RecordsError, match="schema 0"):
        Results.load(path)
    with pytest.raises(RecordsError, match="measure first"):
        Results.load(tmp_path / "none.json")


def test_page_and_picture(tmp_path):
    with kept_figures() as figures:
        write_plot(made_up(), tmp_path / "picture.png")
    assert_readable(figures[0], "CPU", "none", "deepseek_v3, dictionary", "tokens healed with, % of the teacher's")
    assert all(axes.get_legend() for axes in figures[0].axes)
    write_page(made_up(losses=(3.02, 3.0402)), tmp_path / "page.md", Path("results.json"), tmp_path / "picture.png")
    page = (tmp_path / "page.md").read_text()
    # 5 and 6.7 % of the damage are left; 0.67 and 1.00 % above their teachers
    assert (
        "| best-full | 10 k | 0.0300 ± 0.0141 | 94.2% ± 1.2% | 90.0% | 2.000 ± 0.000 | +0.83% ± 0.24% | 0.10% |" in page
    )
    assert "| control | 10 k | 0.0100 ± 0.0000 |  | 90.0% |" in page
    assert "| plan | 15 | 0.2000 | 0.1300 | 0.0100 | 35.0% | 95.0% |" in page
    assert "| > | 1 | 60% | 90% |" not in page
    assert "| > | 1 | 60% | 80% | 0.1000 | 0.1000 |" in page
    assert "| all | 2 | 70% | 100% | 0.5000 | 0.4000 |" in page
    assert "its KL is 32% of that of all of them" in page
    assert "In the last 10% of the steps its loss on the text that chooses changed by -1.96%." in page
    assert "at most 1.0% above the teacher's held-out loss | met: +0.83% |" in page
    assert "- teacher: `goes 'on'`" in page
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_larger_models_have_a_section(tmp_path):
    rows = [one for one in made_up().rows if one.row.label not in ("unhealed-plan", "folded-plan", "best-plan")]
    larger = Results({"machine": "none", "batches": 32}, rows, [])
    write_page(made_up(), tmp_path / "page.md", Path("results.json"), None, larger)
    before, _, section = (tmp_path / "page.md").read_text().partition("## Larger models\n")
    assert "### deepseek_v3, dictionary, larger" in section
    assert "the plan with fold" in before
    assert "the plan with fold" not in section  # nothing was planned
    assert "at most 1.0% above the teacher's held-out loss | met: +0.67% |" in section


def test_the_page_in_docs_is_that_of_its_file(tmp_path):
    whole, larger = (Results.load(file) for file in (distillation.JSON, distillation.LARGER))
    write_page(whole, tmp_path / "page.md", distillation.JSON, distillation.PICTURE, larger)
    assert (tmp_path / "page.md").read_text() == distillation.PAGE.read_text()
