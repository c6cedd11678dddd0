# SPDX-License-Identifier: Apache-2.0
"""The table of passes and the runner: contracts, order, log, trace, verification; edited copies; disabled passes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx
from torch._logging._internal import trace_log

import farskip_compile
from farskip_compile import FarSkipConfig
from farskip_compile.compiler.config import resolve
from farskip_compile.compiler.pipeline import run
from farskip_compile.errors import ConfigError, VerificationError
from farskip_compile.passes.contract import PASSES, Changes, Pass, Stage, why_indispensable
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.residual.tags import KEY
from farskip_compile.passes.runner import PassRunner, difference
from farskip_compile.passes.safe_edit import GraphCopy, OriginalGraph
from farskip_compile.testing.strategies.network import WIDTH
from tests.graphs import Dense, Layer, MoE, Stack, dynamo, ids

# The table


def test_names_are_unique_and_what_a_pass_requires_comes_before_it() -> None:
    names = [one.name for one in PASSES]
    assert len(names) == len(set(names))
    stage_of = {one.name: one.stage for one in PASSES}
    for place, one in enumerate(PASSES):
        assert set(one.requires) <= set(names[:place]), one.name
        assert {stage_of[name] for name in one.requires} <= {one.stage}


def test_stages_stand_in_the_order_in_which_they_run() -> None:
    stages = [one.stage for one in PASSES]
    assert stages == sorted(stages, key=list(Stage).index)


def test_each_pass_is_applied_at_one_place_of_the_source() -> None:
    """So that the table, the runner and the callers name the same passes."""
    root = Path(str(farskip_compile.__file__)).parent / "compiler"
    source = "\n".join(path.read_text() for path in root.rglob("*.py"))
    names = re.findall(r"\.apply\(\s*\"(\w+)\",", source)
    assert sorted(names) == sorted(one.name for one in PASSES)


# The runner


def toy(name: str, changes: Changes = Changes.NOTHING, **fields: Any) -> Pass:
    return Pass(name, Stage.DYNAMO, changes, "a toy", **fields)


def small_graph() -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.call_function(torch.sin, (graph.placeholder("x"),)))
    return graph


def runner(*passes: Pass, graph: fx.Graph | None = None, disabled: tuple[str, ...] = ()) -> PassRunner:
    return PassRunner(Stage.DYNAMO, graph or small_graph(), disabled, passes=passes)


def test_a_pass_gets_its_arguments_and_its_result_comes_back() -> None:
    found = runner(toy("make"), toy("use"))
    made = found.apply("make", lambda one, *, other: (one, other), 1, other=2)
    assert made == (1, 2)
    assert found.apply("use", lambda pair: pair[1] - pair[0], made) == 1
    assert list(found.seconds) == ["make", "use"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("mke",), "the Dynamo graph has no pass called mke"),
        (("elsewhere",), "the Dynamo graph has no pass called elsewhere"),
        (("make", "make"), "the pass make does not come after make"),
        (("use",), "the pass use needs make, which did not run"),
        (("last", "make"), "the pass make does not come after last"),
        (("off",), "the pass off is disabled"),
    ],
)
def test_a_broken_contract_is_an_error(names: tuple[str, ...], words: str) -> None:
    elsewhere = Pass("elsewhere", Stage.POST_GRAD, Changes.NOTHING, "a toy")
    passes = (toy("make"), toy("use", requires=("make",)), toy("off"), toy("last"), elsewhere)
    found = runner(*passes, disabled=("off",))
    *earlier, wrong = names
    for name in earlier:
        found.apply(name, lambda: None)
    with pytest.raises(VerificationError, match=words):
        found.apply(wrong, lambda: None)


def test_what_is_disabled_is_known_before_it_runs() -> None:
    found = runner(toy("make"), disabled=("make",))
    assert not found.is_enabled("make")
    assert found.is_enabled("use")


@pytest.mark.parametrize("changes", [one for one in Changes if one is not Changes.NOTHING])
def test_nothing_is_delivered_unverified(changes: Changes) -> None:
    found = runner(toy("edit", changes), toy("again", changes))
    found.apply("edit", lambda: None)
    with pytest.raises(VerificationError, match="what edit made was not verified"):
        found.finish()
    assert found.verify(lambda: "right") == "right"
    found.finish()
    found.apply("again", lambda: None)
    with pytest.raises(VerificationError, match="what again made was not verified"):
        found.finish()


def test_an_edited_graph_is_linted() -> None:
    def misplace(graph: fx.Graph) -> None:
        placeholder, sin, _ = graph.nodes
        sin.append(placeholder)

    def misplaced(changes: Changes) -> PassRunner:
        graph = small_graph()
        found = runner(toy("a", changes), graph=graph)
        found.apply("a", misplace, graph)
        return found

    misplaced(Changes.NOTHING).verify(lambda: None)
    with pytest.raises(RuntimeError, match="used before it has been defined"):
        misplaced(Changes.FORM).verify(lambda: None)


# A copy that is edited


def edited(copy: GraphCopy) -> None:
    (sin,) = copy.graph.find_nodes(op="call_function", target=torch.sin)
    sin.target = torch.cos


def test_a_copy_takes_the_place_of_the_graph_once_it_is_verified() -> None:
    module = fx.GraphModule({}, small_graph())
    before = module.graph
    copy = GraphCopy(module, Stage.REWIRED)
    copy.passes.apply("pieces_go_on", edited, copy)
    assert module.graph is before
    seen: list[fx.Graph] = []
    copy.verify_and_swap(lambda graph, snapshot: seen.append(graph))
    assert seen == [copy.graph]
    assert module.graph is copy.graph
    assert module.graph.find_nodes(op="call_function", target=torch.cos)


def test_a_copy_that_is_refused_leaves_the_graph_as_it_was() -> None:
    def refuse(graph: fx.Graph, snapshot: GraphSnapshot) -> None:
        raise VerificationError("not the same")

    module = fx.GraphModule({}, small_graph())
    before = module.graph
    copy = GraphCopy(module, Stage.REWIRED)
    copy.passes.apply("pieces_go_on", edited, copy)
    with pytest.raises(VerificationError, match="not the same"):
        copy.verify_and_swap(refuse)
    assert module.graph is before
    assert not module.graph.find_nodes(op="call_function", target=torch.cos)


def test_the_original_is_put_back_with_its_children() -> None:
    module = fx.GraphModule({}, small_graph())
    text = str(module.graph)
    original = OriginalGraph(module)
    (sin,) = module.graph.find_nodes(op="call_function", target=torch.sin)
    sin.target = torch.cos
    module.add_module("added", torch.nn.Identity())
    original.put_back()
    assert str(module.graph) == text
    assert not hasattr(module, "added")


def test_differences_in_words() -> None:
    assert difference(["x", "sin"], ["x", "sin"]) == "2 -> 2 (unchanged)"
    assert difference(["x", "sin"], ["sin", "x"]) == "2 -> 2 (another order)"
    assert difference(["x", "sin"], ["x", "cos", "cos"]) == "2 -> 3 (-1 sin, +2 cos)"


# The passes on the graph of a model


def model() -> Stack:
    return Stack(lambda: Layer(MoE()))


def rewired(**options: Any) -> fx.GraphModule:
    return dynamo(model(), ids(), edit=lambda module: run(module, FarSkipConfig(inner="eager", **options)))[0]


def test_one_log_line_for_each_pass_and_the_verification(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="farskip_compile"):
        rewired()
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    shown = [line.partition(":")[0] for line in lines]
    passes = ["01 arrive", "02 normalize", "03 residual", "04 request", "05 rewire", "07 tags"]
    assert [line for line in shown if line[:2].isdigit()] == passes
    verified = [place for place, line in enumerate(shown) if line == "-- verify"]
    assert shown.index("02 normalize") < verified[0] < shown.index("03 residual")
    assert shown.index("03 residual") < verified[1] < shown.index("05 rewire") < verified[2] < shown.index("07 tags")
    rewire = next(line for line in lines if line.startswith("05"))
    assert "+" in rewire
    assert "add" in rewire
    assert rewire.endswith(" s")


class Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        artifact = getattr(record, "metadata", {}).get("artifact", {})
        if str(artifact.get("name", "")).startswith("farskip_"):
            self.names.append(artifact["name"])
            self.texts.append(str(record.payload))  # type: ignore[attr-defined]


@contextmanager
def listening() -> Iterator[Keep]:
    keep = Keep()
    trace_log.addHandler(keep)
    try:
        yield keep
    finally:
        trace_log.removeHandler(keep)


def test_the_trace_holds_each_state_of_the_graph_once() -> None:
    with listening() as keep:
        rewired()
    assert keep.names == ["farskip_01_arrive_before", "farskip_05_rewire_after"]
    assert len(set(keep.texts)) == 2
    assert all("scaled_dot_product_attention" in text for text in keep.texts)


# Passes left out


def test_without_tags_the_function_is_the_same() -> None:
    outputs = [
        torch.compile(model(), backend="farskip", options={"inner": "eager", "disable_passes": names})(ids())
        for names in ([], ["tags"])
        if torch.compiler.reset() is None
    ]
    assert torch.equal(*outputs)
    tagged, bare = rewired(), rewired(disable_passes=["tags"])
    assert any(KEY in node.meta.get("custom", {}) for node in tagged.graph.nodes)
    assert not any(KEY in node.meta.get("custom", {}) for node in bare.graph.nodes)


def test_which_passes_can_be_left_out() -> None:
    optional = {one.name for one in PASSES if not why_indispensable(one.name)}
    assert optional == {
        "merge_reductions",
        "tags",
        "in_flight",
        "host_reads",
        "pieces",
        "pieces_by_expert",
        "pieces_by_token",
        "pieces_go_on",
        "micro_batches",
        "schedule_graph",
        "pin_waits",
        "pin_products",
        "schedule_kernels",
    }
    for one in PASSES:
        if one.name not in optional:
            with pytest.raises(ConfigError, match=f"{one.name!r} can't be disabled"):
                FarSkipConfig(disable_passes=[one.name])


def test_names_are_a_part_of_the_configurations_identity() -> None:
    one, other = (
        FarSkipConfig(disable_passes=["tags", "pin_waits"]),
        FarSkipConfig(disable_passes=("pin_waits", "tags")),
    )
    assert one.to_json() == other.to_json()
    assert one.to_json() != FarSkipConfig().to_json()
    assert resolve(one).disable_passes == ("pin_waits", "tags")


def test_a_dense_graph_is_not_touched() -> None:
    """Nothing is edited, so nothing has to be verified."""
    module, _ = dynamo(Dense().double(), torch.ones(2, 3, WIDTH, dtype=torch.float64))
    text = str(module.graph)
    run(module, FarSkipConfig())
    assert str(module.graph) == text
