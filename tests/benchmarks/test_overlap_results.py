# SPDX-License-Identifier: Apache-2.0
"""What the overlap benchmark says of its measurements: medians, targets, tables, the page, the picture, the file."""

from __future__ import annotations

import dataclasses
import json
import math

import overlap
import pytest
from common import RecordsError
from overlap_bench import page, plot, terminal
from overlap_bench.ablations import pass_ablation
from overlap_bench.cells import ABLATED, FULL, PLAIN
from overlap_bench.results import Result, Store, Timing, peak_growth
from overlap_bench.targets import judge, summary
from overlap_bench.terminal import cell_text

from tests.benchmarks.overlap_samples import estimate, result
from tests.pictures import assert_readable, kept_figures

TRAINING = "deepseek_v3/training/balanced/2/0.5"
SHARDED, SHARDED_TRAINING = "llama4/prefill/balanced/2/0.5", "llama4/training/balanced/2/0.5"
LONG = "deepseek_v3-long/prefill/balanced/2/1"


def verdicts(found: Result) -> dict[str, bool]:
    return {verdict.target: verdict.met for verdict in judge(found)}


def test_a_step_takes_as_long_as_on_its_slowest_rank():
    timing = Timing.of([[1.0, 5.0, 3.0], [2.0, 1.0, 4.0]])  # 2, 5, 4
    assert timing.median == 4.0
    assert timing.spread == pytest.approx(1.5)


def test_ranks_are_put_together():
    found = result(error=2e-5)
    assert found.timings[PLAIN].median == pytest.approx(0.901)
    assert found.hidden(FULL) == pytest.approx(0.99)
    assert found.hidden(PLAIN) == pytest.approx(0.25)
    check = next(check for check in found.checks if check["one"] == FULL)
    assert (check["error"], check["worst"]) == (2e-5, "w1")
    assert found.others == pytest.approx(0.1)  # a second of ten, on top of the two ranks' nine each
    assert found.ratio == pytest.approx(0.276 / 0.551)
    assert found.bound == pytest.approx(0.551 + 0.01)  # and what no schedule can hide
    assert found.over_bound(FULL) == pytest.approx(0.571 / 0.561)
    assert found.peak_bytes[FULL] == 10**8 + 1
    assert found.memory_growth() == pytest.approx(0.04)
    assert found.memory_growth(PLAIN) is None


def test_memory_grows_over_the_unscheduled_graph_or_over_inductors_order_if_that_holds_less():
    forward, backward = estimate(0.9, 0.3, peak=100, peak_after=103), estimate(0.9, 0.3, peak=200, peak_after=204)
    assert peak_growth([forward, backward]) == pytest.approx(0.03)
    backward["unscheduled"]["peak_bytes"] = 160
    assert peak_growth([forward, backward]) == pytest.approx(0.275)


def test_an_estimate_without_an_order_of_the_graph_is_that_of_the_kernels():
    forward = estimate(0.9, 0.3, peak=100, peak_after=103)
    whole = terminal.estimate([forward])
    forward["unscheduled"] = None
    assert peak_growth([forward]) == pytest.approx(0.03)
    assert terminal.estimate([forward]) == whole


def test_gains_by_the_model_stand_beside_those_of_an_unchanged_model():
    """Both phases of plain Inductor's order, 1.6 + 1.3 seconds, over those of ours, a second each."""
    found = result("deepseek_v3/prefill/balanced/2/1")
    assert found.expected_speed_up("none, pieces") is None, "nothing was scheduled"
    graphs = {
        "none": [estimate(0.9, 0.8, 1, 1), estimate(0.6, 0.5, 1, 1)],
        "none, pieces": [estimate(0.9, 0.3, 1, 1)] * 2,
    }
    found = dataclasses.replace(found, estimates=graphs)
    assert found.expected_speed_up("none, pieces") == pytest.approx(1.45)
    assert "by the model 1.45 x" in next(one.found for one in judge(found) if one.target == "unchanged model")


def test_the_page_says_how_long_collectives_were_in_flight_and_what_pieces_reach():
    store = Store(None)
    for name, hidden in (("deepseek_v3/prefill/balanced/2/1", 0.95), ("deepseek_v3/prefill/balanced/2/0.5", 0.9)):
        store.add(result(name, cut_hidden=hidden))
    text = page.page(store, "x.json", None)
    row = next(line for line in text.splitlines() if line.startswith("| ratio | variant"))
    place = [cell.strip() for cell in row.split("|")].index("in flight")
    of_full = next(line for line in text.splitlines() if "| full, pieces |" in line)
    assert of_full.split("|")[place].strip() == "300 ms"
    met = text[text.index("Met, of exchanges in pieces:") :]
    assert "`deepseek_v3/prefill/balanced/2/1` hidden, in pieces: 95.0 %" in met
    assert "2/0.5` hidden" not in met, "it is missed"
    assert "0.5` hidden, in pieces: 90.0 %" in text[text.index("Missed:") : text.index("Met, of")]


def test_what_is_missed_by_little_does_not_look_met():
    found = result("deepseek_v3/prefill/balanced/2/1", cut_hidden=0.90999)
    (hidden,) = [one for one in judge(found) if one.target == "hidden, in pieces"]
    assert not hidden.met
    assert hidden.found.startswith("90.9 % (at least 91 %), missed by 0.1 points")


def test_not_a_number_is_the_worst():
    found = result(error=math.nan)
    assert [check["one"] for check in found.differs] == [FULL]


@pytest.mark.parametrize(
    ("cell", "wanted", "target", "met"),
    [
        (SHARDED, {"hidden": 0.981}, "hidden", True),
        (SHARDED, {"hidden": 0.979}, "hidden", False),
        ("llama4/prefill/balanced/2/1", {"hidden": 0.979}, "hidden", False),
        ("llama4/prefill/balanced/2/2", {"hidden": 0.5}, "hidden", None),
        ("llama4/prefill/balanced/2/0.25", {"hidden": 0.5}, "hidden", None),
        ("llama4/prefill/balanced/4/0.5", {"hidden": 0.5}, "hidden", None),
        ("llama4/decode/balanced/2/0.5", {"hidden": 0.5}, "hidden", None),
        ("deepseek_v3/prefill/balanced/2/0.5", {"hidden": 0.5}, "hidden", None),
        (SHARDED_TRAINING, {"hidden": 0.951}, "hidden", True),
        (SHARDED_TRAINING, {"hidden": 0.949}, "hidden", False),
        (SHARDED_TRAINING, {"backward": 0.931}, "hidden in backward", True),
        (SHARDED_TRAINING, {"backward": 0.929}, "hidden in backward", False),
        ("deepseek_v3/prefill/balanced/2/0.5", {"cut_hidden": 0.971}, "hidden, in pieces", True),
        ("deepseek_v3/prefill/balanced/2/0.5", {"cut_hidden": 0.969}, "hidden, in pieces", False),
        ("qwen3_moe/prefill/skewed/2/1", {"cut_hidden": 0.911}, "hidden, in pieces", True),
        ("qwen3_moe/prefill/skewed/2/1", {"cut_hidden": 0.909}, "hidden, in pieces", False),
        ("deepseek_v3/training/balanced/2/1", {"cut_hidden": 0.881}, "hidden, in pieces", True),
        ("deepseek_v3/training/balanced/2/1", {"cut_hidden": 0.879}, "hidden, in pieces", False),
        (LONG, {"cut_hidden": 0.5}, "hidden, in pieces", None),
        (SHARDED, {"cut_hidden": 0.5}, "hidden, in pieces", None),
        ("deepseek_v3/prefill/balanced/2/1", {"seconds": {"full, pieces": 0.594}}, "over the floor", True),
        ("deepseek_v3/prefill/balanced/2/1", {"seconds": {"full, pieces": 0.596}}, "over the floor", False),
        ("deepseek_v3/prefill/balanced/2/0.5", {"seconds": {"full, pieces": 0.9}}, "over the floor", None),
        (LONG, {"seconds": {"full, pieces": 0.9}}, "over the floor", None),
        ("deepseek_v3/prefill/balanced/2/1", {"seconds": {"none, pieces": 0.633}}, "unchanged model", True),
        ("deepseek_v3/prefill/balanced/2/1", {"seconds": {"none, pieces": 0.635}}, "unchanged model", False),
        ("deepseek_v3/training/balanced/2/1", {"seconds": {"none, pieces": 0.719}}, "unchanged model", True),
        ("deepseek_v3/training/balanced/2/1", {"seconds": {"none, pieces": 0.721}}, "unchanged model", False),
        ("deepseek_v3/prefill/balanced/2/0.5", {"seconds": {"full": 0.587}}, "over the bound", True),
        ("deepseek_v3/prefill/balanced/2/0.5", {"seconds": {"full": 0.589}}, "over the bound", False),
        (TRAINING, {"seconds": {"full": 0.615}}, "over the bound", True),
        (TRAINING, {"seconds": {"full": 0.617}}, "over the bound", False),
        ("llama4/decode/skewed/4/1", {"seconds": {"full": 0.79}}, "fastest", True),
        ("llama4/decode/skewed/4/1", {"seconds": {"full": 0.81}}, "fastest", False),
        ("qwen3_moe/decode/skewed/4/1", {"seconds": {"full, pieces": 0.79, "full": 0.9}}, "fastest", True),
        ("qwen3_moe/decode/skewed/4/1", {"seconds": {"full, pieces": 0.81}}, "fastest", False),
        (TRAINING, {"seconds": {"full": 0.551}}, "auto, full, pieces", True),
        (TRAINING, {"seconds": {"full, 2 pieces": 0.547}}, "auto, full, pieces", False),
        (TRAINING, {"seconds": {"none, 2 pieces": 0.6}}, "auto, none, pieces", False),
        ("deepseek_v3/decode/skewed/4/2", {"seconds": {"communication": 0.08, "full, pieces": 0.91}}, "fastest", None),
        ("deepseek_v3/decode/skewed/4/2", {"seconds": {"full": 0.917}}, "not slower, full", True),
        ("deepseek_v3/decode/skewed/4/2", {"seconds": {"full": 0.92}}, "not slower, full", False),
        ("deepseek_v3/decode/skewed/4/2", {"seconds": {"none": 0.92}}, "not slower, none", False),
        ("qwen3_moe/decode/skewed/4/2", {"peaks": {"full": 104_900_000}}, "memory, full", True),
        ("qwen3_moe/decode/skewed/4/2", {"peaks": {"full": 105_100_000}}, "memory, full", False),
        ("qwen3_moe/decode/skewed/4/2", {"peaks": {"full": 109_000_000}, "resident": 10**8}, "memory, full", True),
        ("qwen3_moe/decode/skewed/4/2", {"peaks": {"hand-written": 90_000_000}}, "memory, full", False),
        ("qwen3_moe/decode/skewed/4/2", {"peaks": {"none": 105_100_000}}, "memory, none", False),
        ("qwen3_moe/decode/skewed/4/2", {"peaks": {"plain": 120_000_000}}, "memory, none", True),
        ("qwen3_moe/decode/skewed/4/2", {"peaks": {"full, pieces": 105_100_000}}, "memory, full, pieces", False),
        ("llama4/decode/skewed/4/1", {"peaks": {}}, "memory, full, pieces", None),
        (TRAINING, {"least": 2.0 / 1.049}, "order, full", True),
        (TRAINING, {"least": 2.0 / 1.051}, "order, full", False),
        (TRAINING, {}, "order, full", None),
        (TRAINING, {"error": 0.9e-4}, "results", True),
        (TRAINING, {"error": 2e-4}, "results", False),
        (TRAINING, {"error": math.nan}, "results", False),
    ],
)
def test_each_target(cell, wanted, target, met):
    assert verdicts(result(cell, **wanted)).get(target) is met


def test_what_slows_a_whole_repetition_is_no_difference():
    """The machine is twice as slow in half of the repetitions; the slower rank counts."""
    slow = [1.0, 2.0, 1.0, 2.0, 2.0]
    raw = [
        {PLAIN: [1.0 * by for by in slow], FULL: [0.8 * by for by in slow[:-1]] + [0.8]},
        {PLAIN: [0.5] * 5, FULL: [0.1] * 5},
    ]
    found = dataclasses.replace(result(), raw=raw)
    assert found.times_as_fast(FULL, PLAIN) == found.speed_up(FULL) == pytest.approx(1.25)


def test_a_missed_target_says_by_how_much():
    texts = {verdict.target: verdict.line() for verdict in judge(result(SHARDED, hidden=0.95, seconds={"full": 0.66}))}
    assert "MISSED llama4/prefill/balanced/2/0.5 hidden: 95.0 %" in texts["hidden"]
    assert (
        "missed by 3.0 points; 1.0 % is waiting for another rank to launch, no schedule can hide 3.6 % of"
        in texts["hidden"]
    )
    late = {verdict.target: verdict.line() for verdict in judge(result(SHARDED_TRAINING, backward=0.9))}
    assert "0.5 % is waiting for another rank to launch" in late["hidden in backward"]
    found = result(SHARDED, hidden=0.95)
    for figures in found.exposed.values():
        del figures["waiting"]  # a cell of an older file
    assert "missed by 3.0 points; no schedule can hide 3.6 % of a step's" in judge(found)[0].line()
    cut = {verdict.target: verdict.line() for verdict in judge(result(cut_hidden=0.9))}
    assert "90.0 % (at least 97 %), missed by 7.0 points" in cut["hidden, in pieces"]
    assert "no schedule can hide 3.6 % of a step's communication uncut" in cut["hidden, in pieces"]
    assert "missed by 72 ms; by the model, collectives slow compute by 20 ms" in texts["over the bound"]
    assert "+21.2 % against the best baseline, overlapped eager" in texts["fastest"]
    (large,) = (v.line() for v in judge(result(peaks={"full": 107_000_000})) if v.target == "memory, full")
    assert "+7.0 % against hand-written's 100 MB (at most +5 %), missed by 2 MB; by our estimate +4.0 %" in large


def test_a_baseline_that_is_missing_is_told_and_beats_nobody():
    found = result(missing=("overlapped eager",))
    assert "overlapped eager is missing: nobody wrote it" in cell_text(found, 80)
    assert verdicts(found)["fastest"]


def test_whether_inductors_own_overlap_acted_is_read_off_its_code():
    found = result()
    assert (found.acted("inductor overlap"), found.acted("inductor passes"), found.acted(FULL)) == (True, False, None)
    text = " ".join(cell_text(found, 80).split())
    assert "inductor overlap acted: heavy kernels between launch and wait 0 -> 6" in text
    assert "inductor passes DID NOT ACT" in text


@pytest.mark.parametrize("cell", [TRAINING, "qwen3_moe/decode/skewed/4/2"])
@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits(width, cell):
    text = cell_text(result(cell, error=1.0), width)
    assert max(map(len, text.splitlines())) <= width
    assert "full = hand-written: NO, apart by 1.0e+00 of the norm (w1)" in " ".join(text.split())
    assert "full, estimated: exposed 900 ms -> 300 ms of 800 ms, peak +4.0 %" in text
    assert "none, estimated: nothing was scheduled" in text
    assert ("hidden in backward: none 50.0 %, full 96.0 %" in text) is (cell == TRAINING)
    assert "layers with experts compute: attention 0.41, shared 0.07, routed 0.52" in text
    assert ("first run" in text) is (width == 120)
    assert ("in bwd" in text) is (width == 120 and cell == TRAINING)


def test_results_that_agree_take_one_line():
    text = " ".join(cell_text(result(error=3e-5), 80).split())
    assert "results agree to 3.0e-05 of the norm: inductor overlap = plain, inductor passes = plain, chunked" in text


def test_a_busy_machine_is_told():
    assert "TRUST" not in cell_text(result(), 80)
    assert "kept 0.30 cores busy: TOO MANY TO TRUST" in cell_text(result(busy=21.0), 80)


def test_the_file_holds_every_finished_cell_and_is_read_again(tmp_path):
    path = tmp_path / "results.json"
    store = Store(path, {"machine": "made up"})
    first, second = result(), result(TRAINING)
    for one in (second, first):
        store.add(one)
        json.loads(path.read_text())  # whole after each
    store.add(dataclasses.replace(second, when="later"))  # measured again
    again = Store.load(path)
    assert [found.cell for found in again.ordered()] == [first.cell, second.cell]
    assert again.results[TRAINING].when == "later"
    assert again.results[first.cell] == first
    assert again.facts == {"machine": "made up"}


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(RecordsError, match="measure first"):
        Store.load(tmp_path / "nothing.json")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(RecordsError, match="not a result of this benchmark"):
        Store.load(tmp_path / "other.json")
    (tmp_path / "old.json").write_text('{"schema": 0}')
    with pytest.raises(RecordsError, match="measure again"):
        Store.load(tmp_path / "old.json")


def test_page_and_picture_are_made_from_the_file_alone(tmp_path, monkeypatch, capsys):
    store = Store(tmp_path / "benchmarks.json", {"machine": "a machine", "versions": "torch 9", "command": "python x"})
    for found in (
        result(cut_hidden=0.9),
        result(TRAINING),
        result("llama4/decode/skewed/4/1", missing=("overlapped eager",)),
    ):
        store.add(found)
    monkeypatch.setattr(overlap, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(overlap, "PICTURE", tmp_path / "benchmarks.png")
    monkeypatch.setattr("sys.argv", ["overlap.py", "--table", "--plot", "--json", str(store.path)])
    with kept_figures() as figures:
        assert overlap.main() == 0
    assert_readable(
        figures[0], "CPU, float32: a machine; 2 or 4 hosts", "prefill (1 cell)", "training (1 cell)", "ratio"
    )
    text = (tmp_path / "benchmarks.md").read_text()
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
    for part in (
        "a machine",
        "torch 9",
        "python x",
        "](benchmarks.png)",
        "`benchmarks.json`",
        "inductor passes DID NOT",
    ):
        assert part in text
    assert "| hidden, in pieces | 0 | 1 |" in text
    assert "39 of the grid's 41 cells are not measured" in text
    assert "`deepseek_v3/prefill/balanced/2` at 1, 2;" in text
    assert "- `deepseek_v3/prefill/balanced/2/0.5` hidden, in pieces: 90.0 % (at least 97 %)" in text
    rows = [line for line in text.splitlines() if line.startswith("| 0.5 | **full** ")]
    assert len(rows) == 2
    assert "96.0 %" in rows[1]
    tables = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(tables) == {4, 11, 13}
    monkeypatch.setattr("sys.argv", ["overlap.py", "--table", "--json", str(tmp_path / "none.json")])
    assert overlap.main() == overlap.USAGE
    assert "measure first" in capsys.readouterr().err


def test_the_page_says_what_each_pass_earns(tmp_path):
    """From a file of its own: steps without a pass, against the one with all of them in the same repetition."""
    path = tmp_path / "pass_ablation.json"
    assert pass_ablation(path) == ""
    found = result()
    without = "without pin_waits"
    times = {without: Timing(2 * found.timings["full, pieces"].median, 0.0), **found.timings}
    raw = [{**rank, without: [2 * one for one in rank["full, pieces"]]} for rank in found.raw]
    others = dict.fromkeys(ABLATED, found.exposed["full, pieces"])
    rest = {name: Timing(1.0, 0.0) for name in ABLATED}
    store = Store(path, {"versions": "torch 9", "command": "python x"})
    store.add(
        dataclasses.replace(
            found,
            timings={**rest, **times},
            raw=[{**dict.fromkeys(ABLATED, rank["full, pieces"]), **rank} for rank in raw],
            exposed={**others, **found.exposed},
            peak_bytes={**dict.fromkeys(ABLATED, 10**8), **found.peak_bytes},
        )
    )
    text = pass_ablation(path)
    assert "`python x`; torch 9." in text
    rows = {cells[2].strip(): cells[4].strip() for line in text.splitlines() if len(cells := line.split("|")) > 4}
    assert rows[without] == "+100.0 %"
    assert rows["without pieces"] == rows["full, pieces"] == "+0.0 %"
    assert set(ABLATED) | {"full"} <= set(rows)


def test_a_page_without_results_or_targets():
    empty = page.page(Store(None), "x.json", None)
    assert "## Cells" in empty
    assert "41 of the grid's 41 cells are not measured" in empty
    assert summary([]) == []
    assert len({mark for _, mark in plot.LOOKS.values()}) == len(plot.LOOKS)
