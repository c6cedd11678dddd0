# SPDX-License-Identifier: Apache-2.0
"""The table of passes and the driver: contracts, order, log, trace, verification; and passes left out."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import fx
from torch._logging._internal import trace_log

from farskip_compile import FarSkipConfig
from farskip_compile.compiler.config import resolve
from farskip_compile.compiler.pipeline import run
from farskip_compile.errors import ConfigError, VerificationError
from farskip_compile.passes import PASSES
from farskip_compile.passes.contract import Changes, Pass, Stage, why_indispensable
from farskip_compile.passes.driver import Driver, difference
from farskip_compile.passes.residual.tags import KEY
from farskip_compile.testing.strategies.network import WIDTH
from tests.graphs import Dense, Layer, MoE, Stack, dynamo, ids

GIVEN = {
    Stage.DYNAMO: {
        *("module", "graph", "autocast", "table", "connectivity", "layers", "leaving", "pieces_later"),
        *("stream", "regions", "term_names", "table_as_wired"),
    },
    Stage.POST_GRAD: {
        *("graph", "facts", "training", "pieces", "regroup"),
        *("estimate", "limits", "in_place", "backward"),
    },
    Stage.BEFORE_FUSION: {"kernels"},
    Stage.AFTER_FUSION: {"kernels", "estimate", "limits", "input_bytes"},
}
"""What `pipeline` and `inductor_passes` give the passes of each stage."""


# The table


def test_each_pass_is_provided_with_what_it_needs() -> None:
    for stage, given in GIVEN.items():
        known = set(given)
        for one in PASSES:
            if one.stage is stage:
                assert known.issuperset({*one.takes, *one.requires}), one.name
                known.update(one.provides)


def test_each_function_takes_what_the_table_says() -> None:
    for one in PASSES:
        inspect.signature(one.load()).bind(*one.takes)
    names = [one.name for one in PASSES]
    assert len(names) == len(set(names))


def test_stages_stand_in_the_order_in_which_they_run() -> None:
    stages = [one.stage for one in PASSES]
    assert stages == sorted(stages, key=list(Stage).index)


# The driver


@dataclass(frozen=True)
class Toy(Pass):
    """A pass whose function is given."""

    call: Callable[..., Any] = lambda graph: None

    def load(self) -> Callable[..., Any]:
        return self.call


def toy(name: str, call: Callable[..., Any] = lambda graph: None, **fields: Any) -> Toy:
    return Toy(name, "", Stage.DYNAMO, "a toy", call=call, **{"takes": ("graph",), **fields})


def small_graph() -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.call_function(torch.sin, (graph.placeholder("x"),)))
    return graph


def driver(*passes: Pass, graph: fx.Graph | None = None, skip: tuple[str, ...] = ()) -> Driver:
    return Driver(passes, Stage.DYNAMO, {"graph": graph or small_graph()}, skip)


def test_facts_go_from_pass_to_pass() -> None:
    made = toy("make", lambda graph: (1, 2), provides=("one", "two"))
    used = toy("use", lambda two, one: two - one, takes=("two", "one"), provides=("difference",))
    found = driver(made, used)
    assert found.run(through="make")
    assert "difference" not in found.facts
    assert found.run()
    assert found.facts["difference"] == 1
    assert list(found.seconds) == ["make", "use"]


def test_only_passes_that_are_left_can_be_run() -> None:
    found = driver(toy("make"))
    with pytest.raises(VerificationError, match="no pass called mke is left to run"):
        found.run(through="mke")
    found.run(through="make")
    with pytest.raises(VerificationError, match="no pass called make is left to run"):
        found.run(through="make")


def test_passes_of_another_stage_do_not_run() -> None:
    found = Driver([toy("make", provides=("one",))], Stage.POST_GRAD, {"graph": small_graph()})
    assert found.run()
    assert not found.seconds


@pytest.mark.parametrize(
    ("passes", "words"),
    [
        ([toy("use", takes=("table",))], "the pass use needs table, which no earlier pass provides"),
        ([toy("use", requires=("normalized",))], "the pass use needs normalized"),
        ([toy("make", provides=("table",))], "the pass make did not deliver table"),
        ([toy("make", lambda graph: (1, None), provides=("one", "two"))], "did not deliver one, two"),
        ([toy("make", lambda graph: 1, provides=("one", "two"))], "did not deliver one, two"),
    ],
)
def test_a_broken_contract_is_an_error(passes: list[Pass], words: str) -> None:
    with pytest.raises(VerificationError, match=words):
        driver(*passes).run()


def test_a_pass_may_decline() -> None:
    found = driver(toy("read", provides=("table",), may_decline=True), toy("use", takes=("table",)))
    assert not found.run()
    assert "table" not in found.facts


def test_what_nobody_gets_without_the_pass_that_is_left_out() -> None:
    made, used = toy("make", lambda graph: 1, provides=("one",)), toy("use", takes=("one",))
    with pytest.raises(VerificationError, match="use needs one"):
        driver(made, used, skip=("make",)).run()


@pytest.mark.parametrize("changes", [one for one in Changes if one is not Changes.NOTHING])
def test_nothing_is_delivered_unverified(changes: Changes) -> None:
    found = driver(toy("edit", changes=changes), toy("again", changes=changes))
    found.run(through="edit")
    with pytest.raises(VerificationError, match="what edit made was not verified"):
        found.finish()
    assert found.verify(lambda: "right") == "right"
    found.finish()
    found.run()
    with pytest.raises(VerificationError, match="what again made was not verified"):
        found.finish()


def test_an_edited_graph_is_linted() -> None:
    def misplace(graph: fx.Graph) -> None:
        placeholder, sin, _ = graph.nodes
        sin.append(placeholder)

    analysed, edited = (driver(toy("a", misplace, changes=one)) for one in (Changes.NOTHING, Changes.FORM))
    for found in (analysed, edited):
        found.run()
    analysed.verify(lambda: None)
    with pytest.raises(RuntimeError, match="used before it has been defined"):
        edited.verify(lambda: None)


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
    optional = {one.name for one in PASSES if not why_indispensable(PASSES, one.name)}
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
