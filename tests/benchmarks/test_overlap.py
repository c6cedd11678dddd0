# SPDX-License-Identifier: Apache-2.0
"""The overlap benchmark: its grid and arguments, the rate of the network, and what ranks ask for while they run.

What it measures is shown by running it; no step is timed here.
"""

from __future__ import annotations

import json
import threading

import overlap
import pytest
from harness.commands import FASTEST, SLOWEST
from overlap_bench import cells, settings
from overlap_bench.alone import Probe, find_rate
from overlap_bench.ask import ask
from overlap_bench.cells import Cell, CellError, Group
from overlap_bench.launch import desk

# The grid


def test_the_grid():
    whole = cells.grid()
    assert len(whole) == 3 * 3 * 3 + 2 * 2 + 2 * 2 * 1 + 3 * 2 == len(set(whole))
    assert [Cell.parse(str(cell)) for cell in whole] == whole
    groups = cells.by_group(whole)
    assert len(groups) == 9 + 2 + 4 + 3
    for group, ratios in groups.items():
        assert tuple(ratios) == cells.ratios_of(group)
        usual = (group.hosts, group.routing) == (2, "balanced")
        assert usual or group.phase != "decode"
        assert group.hosts == 2 or group.phase == "prefill"
        assert group.model != cells.LONG or usual
        assert (tuple(ratios) == cells.RATIOS) == (usual and group.model != cells.LONG)
    assert all(cell.group in groups and cell.ratio == 1 for cell in cells.ablated())
    assert cells.by_group([whole[0], whole[1], whole[0]]) == {whole[0].group: [0.5, 1.0]}
    assert [str(cell) for cell in cells.quick()] == [
        "deepseek_v3/prefill/balanced/2/0.5",
        "deepseek_v3/training/balanced/2/0.5",
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("deepseek_v3/prefill", "is not a cell: write model/phase"),
        ("deepseek_v3/prefill/balanced/two/0.5", "is not a cell: write model/phase"),
        ("mixtral/prefill/balanced/2/0.5", "mixtral is not one of deepseek_v3"),
        ("deepseek_v3/prefill/balanced/3/0.5", "3 is not one of 2, 4"),
        ("deepseek_v3/prefill/balanced/2/-1", "a ratio is positive"),
        ("deepseek_v3/prefill/balanced/2/nan", "a ratio is positive"),
    ],
)
def test_what_is_no_cell(text, word):
    with pytest.raises(CellError, match=word):
        Cell.parse(text)


def test_arguments_choose_cells(capsys):
    def chosen(*given):
        return [str(cell) for cell in overlap.arguments(list(given)).wanted]

    assert len(chosen()) == 41
    assert chosen("--cells", "llama4/decode/skewed/4/0.7") == ["llama4/decode/skewed/4/0.7"]
    some = chosen("--models", "qwen3_moe", "--phases", "prefill", "--routing", "skewed", "--ratios", "1", "2")
    assert some == ["qwen3_moe/prefill/skewed/2/1"]
    assert chosen("--ablation") == ["deepseek_v3/prefill/balanced/2/1", "deepseek_v3/training/balanced/2/1"]
    assert len(chosen("--quick")) == 2
    with pytest.raises(SystemExit):
        overlap.arguments(["--cells", "nothing"])
    assert "is not a cell: write model/phase/routing/hosts/ratio" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        overlap.arguments(["--ratios", "0"])
    with pytest.raises(SystemExit):
        overlap.arguments(["--phases", "decode", "--hosts", "4"])
    assert "the grid has none of these cells" in capsys.readouterr().err
    assert overlap.arguments([]).json == overlap.JSON
    assert overlap.arguments(["--ablation"]).json == overlap.ABLATED
    assert overlap.arguments(["--quick"]).json is None  # a small run never replaces what docs/ shows


def test_cells_that_are_done_are_skipped_on_request(tmp_path):
    from overlap_bench.results import Store

    from tests.benchmarks.overlap_samples import result

    path = tmp_path / "r.json"
    Store(path).add(result())
    given = ["--quick", "--json", str(path)]
    assert len(overlap.Run(overlap.arguments(given)).wanted) == 2
    assert [str(cell) for cell in overlap.Run(overlap.arguments([*given, "--resume"])).wanted] == [
        "deepseek_v3/training/balanced/2/0.5"
    ]


@pytest.mark.parametrize("group", cells.by_group(cells.grid()), ids=str)
def test_every_group_is_a_model_that_can_be_built(group: Group):
    from farskip_compile.models import MODELS

    for effort in (settings.FULL, settings.SMOKE):
        found = settings.settings_of(group, effort)
        json.dumps(found)
        overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in found["overrides"].items()}
        config = MODELS[group.model.partition("-")[0]](**overrides)
        assert "moe" in config.layers
        assert found["tensor_parallel"] is (group.model == "llama4")
        cut = (config.heads, config.kv_heads, config.intermediate_size, config.moe_intermediate_size)
        for count in cut if found["tensor_parallel"] else (config.experts,):
            assert count % group.hosts == 0
        assert (config.router_skew > 0) is (group.routing == "skewed")
        # nothing is exchanged among tensor-parallel ranks: the room of an expert stays what it was
        assert (found["capacity_factor"] is None) is (group.routing == "skewed" and group.model != "llama4")
        assert max(map(len, settings.describe(group, found).split("\n"))) < 200


# The rate


@pytest.mark.parametrize("wanted", [0.1, 0.3, 1.0])
def test_the_rate_gives_the_wanted_time(wanted):
    """On a link that takes twice as long as its rate says, as gloo's all-to-all does."""
    rates = []

    def measured(rate):
        rates.append(rate)
        return Probe(rate, 2 * 8 * 12e6 / rate, {"rate": rate, "text": ""})

    found = find_rate(wanted, 12e6, measured)
    assert found.seconds == pytest.approx(wanted, rel=0.05)
    assert found.rate == rates[-1]
    assert len(rates) == 2


@pytest.mark.parametrize(("wanted", "limit"), [(1e-6, FASTEST), (1e6, SLOWEST)])
def test_the_rate_stays_what_a_link_can_have(wanted, limit):
    assert find_rate(wanted, 12e6, lambda rate: Probe(rate, 1.0, {"rate": rate})).rate == limit


def test_without_a_network_one_try_is_enough():
    tries = []
    find_rate(1.0, 12e6, lambda rate: tries.append(rate) or Probe(rate, 9.0, {"rate": None}))
    assert len(tries) == 1


# Questions of the ranks


def test_questions_are_answered_in_order(tmp_path):
    asked = []
    with desk(tmp_path, lambda question: asked.append(question) or len(asked)):
        assert [ask(str(tmp_path), {"rate": rate}) for rate in (None, 5)] == [1, 2]
    assert asked == [{"rate": None}, {"rate": 5}]
    assert list(tmp_path.iterdir()) == []


def test_what_the_desk_can_not_do_is_an_error_on_both_ends(tmp_path):
    failures = []

    def rank():
        try:
            ask(str(tmp_path), "?")
        except RuntimeError as error:
            failures.append(str(error))

    def refuse(question):
        raise KeyError(question)

    def serve():
        with desk(tmp_path, refuse):
            thread = threading.Thread(target=rank)
            thread.start()
            thread.join()

    with pytest.raises(KeyError):
        serve()
    assert failures == ["the process that started this rank failed to answer: KeyError: '?'"]
