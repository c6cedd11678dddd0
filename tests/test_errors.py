# SPDX-License-Identifier: Apache-2.0
"""Bad input: each mistake is a typed error with a place, a reason and a way out, and the model stays as it was."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import farskip_compile
from farskip_compile import ConfigError, FarSkipConfig, FarSkipError, FarSkipWarning, Outcome
from farskip_compile.errors import (
    ConnectivityError,
    DenseModelError,
    InseparableExpertsError,
    LayerRangeError,
    NotASumError,
    ParallelismError,
    PartialModelError,
)
from farskip_compile.models import ParallelConfig, build
from farskip_compile.models.config import shard_size
from tests.compile_each import compile_each
from tests.distributed.ranks import run_ranks

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "layers": ("dense", "moe", "moe")}
IDS = torch.arange(12).view(2, 6)


def compile_and_run(model: nn.Module, *, fullgraph: bool = True, **options: Any) -> torch.Tensor:
    return torch.compile(model, backend="farskip", fullgraph=fullgraph, options={"inner": "eager", **options})(IDS)


def assert_refused(model: nn.Module, kind: type[FarSkipError], words: str, *, fullgraph: bool = True, **options: Any):
    """The error of the given kind, with a way out; and under strict=False one warning and the original result."""
    with pytest.raises(kind, match=words) as caught:
        compile_and_run(model, fullgraph=fullgraph, **options)
    assert caught.value.way_out
    torch.compiler.reset()
    expected = model(IDS)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        output = compile_and_run(model, fullgraph=fullgraph, strict=False, **options)
    assert torch.equal(output, expected)
    assert len([w for w in seen if issubclass(w.category, FarSkipWarning)]) == 1
    outcomes = [report.outcome for report in farskip_compile.reports().compiles]
    assert Outcome.REFUSED in outcomes
    assert Outcome.REWIRED not in outcomes
    return caught.value


def assert_each_refused(model: nn.Module, kind: type[FarSkipError], wishes: list[tuple[str, dict[str, Any]]]) -> None:
    """The same for each wish with the words of its error, from one capture of the model."""
    options = [{"inner": "eager", "strict": strict, **wish} for _, wish in wishes for strict in (True, False)]
    runs = compile_each(model, options)
    expected = model(IDS)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        outputs = [run(IDS) for run in runs[1::2]]
    assert all(torch.equal(output, expected) for output in outputs)
    assert len([w for w in seen if issubclass(w.category, FarSkipWarning)]) == len(wishes)
    outcomes = [report.outcome for report in farskip_compile.reports().compiles]
    assert Outcome.REFUSED in outcomes
    assert Outcome.REWIRED not in outcomes
    for (words, _), run in zip(wishes, runs[::2], strict=True):
        with pytest.raises(kind, match=words) as caught:
            run(IDS)
        assert caught.value.way_out


class Wrapped(nn.Module):
    """A decoder of which one step can be changed."""

    def __init__(self, **overrides: Any) -> None:
        super().__init__()
        self.decoder = build("deepseek_v3", dtype=torch.float64, **{**SMALL, **overrides})

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.decoder.token_embedding(ids)
        rope = self.decoder.rope(hidden, hidden.shape[1])
        for index, layer in enumerate(self.decoder.layers):
            hidden = self.between(index, layer(self.before(index, hidden), rope))
        return self.decoder.lm_head(self.decoder.final_norm(hidden))

    def before(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def between(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_dense_model() -> None:
    model = build("mixtral", vocab_size=32, hidden_size=32, layers=("dense", "dense"))
    assert_refused(model, DenseModelError, "no routed experts")


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_a_refused_model_compiles_unchanged_with_every_inner_backend(inner: str) -> None:
    model = build("mixtral", vocab_size=32, hidden_size=32, layers=("dense",))
    with pytest.warns(FarSkipWarning, match="no routed experts"):
        output = compile_and_run(model, inner=inner, strict=False)
    torch.testing.assert_close(output, model(IDS))


class SometimesNormed(Wrapped):
    """Can be rewired for sequences of five tokens or more."""

    def before(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(hidden, hidden.shape[-1:]) if index == 1 and hidden.shape[1] < 5 else hidden


@pytest.mark.parametrize("rewired_first", [True, False])
def test_graphs_of_one_model_are_not_mixed(rewired_first: bool) -> None:
    """Where one graph can't be rewired: none is, or, if one is already, an error; never some of each."""
    model = SometimesNormed()
    long, short = IDS, IDS[:, :4]
    options = {"inner": "eager", "strict": False}
    compiled = torch.compile(model, backend="farskip", fullgraph=True, dynamic=False, options=options)
    if rewired_first:
        assert not torch.equal(compiled(long), model(long))
        with pytest.raises(PartialModelError, match="another graph of this model is rewired already"):
            compiled(short)
    else:
        with pytest.warns(FarSkipWarning):
            assert torch.equal(compiled(short), model(short))
        assert torch.equal(compiled(long), model(long))
        assert {report.outcome for report in farskip_compile.reports().compiles} == {Outcome.REFUSED}


def test_residual_that_is_normalised_on_the_way() -> None:
    class Normed(Wrapped):
        def before(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
            return nn.functional.layer_norm(hidden, hidden.shape[-1:]) if index == 1 else hidden

    error = assert_refused(Normed(), FarSkipError, "normalised")
    assert error.where.node


def test_residual_that_is_counted_twice() -> None:
    class Twice(Wrapped):
        def between(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + hidden if index == 1 else hidden

    error = assert_refused(Twice(), NotASumError, "twice")
    assert error.where.source is not None
    assert "test_errors.py" in error.where.source or "decoder.py" in error.where.source


def test_streams_that_are_mixed_by_activations() -> None:
    """Hyper-connection style: no two layers share a sum, so nothing may pass through as "no residual stack"."""

    class Mixed(Wrapped):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            hidden = self.decoder.token_embedding(ids)
            rope = self.decoder.rope(hidden, hidden.shape[1])
            for layer in self.decoder.layers:
                gate = hidden.mean(-1, keepdim=True).sigmoid()
                branch = layer.attention(layer.attention_norm(hidden), rope)
                hidden = torch.stack([hidden, branch], -1).mul(gate.unsqueeze(-1)).sum(-1)
                branch = layer.feed_forward(layer.feed_forward_norm(hidden))
                hidden = torch.stack([hidden, branch], -1).sum(-1)
            return self.decoder.lm_head(self.decoder.final_norm(hidden))

    assert_refused(Mixed(), NotASumError, "no residual stream")


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"conectivity": "full"}, ConfigError, "unknown option 'conectivity'"),
        ({"connectivity": "half"}, ConfigError, "connectivity='half' is unknown"),
        ({"connectivity": 3}, ConfigError, "neither a name nor a table"),
        ({"connectivity": {"moe.1": "a1"}}, ConfigError, "neither a name nor a table"),
        ({"connectivity": {"moe.1": ["a1"]}, "layers": (0, 1)}, ConfigError, "already says which layers"),
        ({"layers": (1,)}, ConfigError, "not a pair of integers"),
        ({"layers": (0, True)}, ConfigError, "not a pair of integers"),
        ({"inner": "tvm"}, ConfigError, "inner='tvm' is unknown"),
        ({"strict": 1}, ConfigError, "not a bool"),
        ({"inductor": {"max_autotune": True}}, ConfigError, "inner='eager'"),
        ({"inner": "inductor", "inductor": {"max_autotone": True}}, ConfigError, "Inductor refuses"),
        ({"inner": "inductor", "inductor": {"max_autotune": "yes"}}, ConfigError, "Inductor refuses"),
        ({"merge_reductions": True, "connectivity": "ladder"}, ConfigError, 'needs connectivity="full" or "mlp"'),
        ({"pieces": 3}, ConfigError, "pieces=3 is unknown"),
        ({"pieces": True}, ConfigError, "pieces=True is unknown"),
        ({"pieces": "all", "inner": "inductor"}, ConfigError, "pieces='all' is unknown"),
        ({"pieces": 2}, ConfigError, "does nothing with inner='eager'"),
        ({"pieces_along": "slots"}, ConfigError, "pieces_along='slots' is unknown"),
        ({"micro_batches": 3}, ConfigError, "micro_batches=3 is unknown"),
        ({"micro_batches": 2}, ConfigError, "does nothing with inner='eager'"),
        ({"pieces": 2, "micro_batches": 2, "inner": "inductor"}, ConfigError, "both cut exchanges"),
        ({"pieces": "auto", "inner": "inductor", "schedule": False}, ConfigError, "schedule=False"),
        ({"on_report": 3}, ConfigError, "not callable"),
        ({"schedule": "yes"}, ConfigError, "schedule='yes' is not a bool"),
        ({"profile": "h1000"}, ConfigError, "no hardware profile is called 'h1000'"),
        ({"profile": 3}, ConfigError, "profile=3 is not a hardware profile"),
        ({"memory_increase": -0.1}, ConfigError, "not a fraction of the peak"),
        ({"memory_increase": float("nan")}, ConfigError, "not a fraction of the peak"),
        ({"load_imbalance": 0.9}, ConfigError, "not a ratio of the most to the mean"),
        ({"load_imbalance": float("inf")}, ConfigError, "not a ratio of the most to the mean"),
        ({"in_flight_bytes": 1.5}, ConfigError, "not a number of bytes"),
        ({"ep_group": 3}, ConfigError, "ep_group=3 is not a process group"),
        ({"disable_passes": "tags"}, ConfigError, "is not a list of names"),
        ({"disable_passes": ["tag"]}, ConfigError, "unknown pass, 'tag'\n.*did you mean 'tags'"),
        ({"disable_passes": ["rewire"]}, ConfigError, "'rewire' can't be disabled: it makes the function"),
        ({"disable_passes": ["tags", "normalize"]}, ConfigError, "'normalize' can't be disabled: residual needs"),
    ],
)
def test_wrong_options(options: dict[str, Any], kind: type[FarSkipError], words: str) -> None:
    """Wrong options are errors under strict=False too: nobody asked for them."""
    for strict in (True, False):
        torch.compiler.reset()
        with pytest.raises(kind, match=words) as caught:
            compile_and_run(build("mixtral", **{**SMALL, "layers": ("moe",)}), **{"strict": strict, **options})
        assert caught.value.way_out


def test_close_option_is_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean 'connectivity'"):
        FarSkipConfig.from_options({"conectivity": "full"})


def test_mode_needs_inductor() -> None:
    with pytest.raises(ConfigError, match="is a mode of Inductor"):
        farskip_compile.backend(inner="eager", mode="max-autotune-no-cudagraphs")


def test_range_out_of_bounds() -> None:
    assert_refused(build("mixtral", **SMALL), LayerRangeError, "layers 0 to 2", layers=(0, 3))
    torch.compiler.reset()
    farskip_compile.reports().clear()
    wishes = [("layers 0 to 2", {"layers": layers}) for layers in ((-1, 1), (2, 1), (7, 9))]
    assert_each_refused(build("mixtral", **SMALL), LayerRangeError, wishes)


def test_range_that_changes_nothing() -> None:
    model = build("deepseek_v3", **SMALL)
    assert_refused(model, LayerRangeError, "changes nothing", layers=(0, 1), connectivity="attention")


ABSENT: list[tuple[dict[str, list[str]], str]] = [
    ({"attention.9": ["r1"]}, "does not have"),
    ({"attention.2": ["r7"]}, "does not have"),
    ({"attention.1": ["r2"]}, "does not read"),
    ({"attention.0": ["e"]}, "nothing to read"),
    ({"attention.1": ["e"]}, "not a residual value"),
]


def test_tables_of_absent_terms() -> None:
    wishes = [(words, {"connectivity": table}) for table, words in ABSENT]
    assert_each_refused(build("deepseek_v3", **SMALL), ConnectivityError, wishes)


class DroppedOut(nn.Module):
    """A decoder whose MoE output, routed and shared together, goes through a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = build("deepseek_v3", dtype=torch.float64, **SMALL)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.decoder.token_embedding(ids)
        rope = self.decoder.rope(hidden, hidden.shape[1])
        for layer in self.decoder.layers:
            hidden = hidden + layer.attention(layer.attention_norm(hidden), rope)
            out = layer.feed_forward(layer.feed_forward_norm(hidden))
            hidden = hidden + nn.functional.dropout(out, 0.5, self.training)
        return self.decoder.lm_head(self.decoder.final_norm(hidden))


def test_routed_output_that_cant_be_told_from_shared() -> None:
    model = DroppedOut().train()
    with pytest.raises(InseparableExpertsError, match=r"shared experts of layer 1.*'dropout'") as caught:
        compile_and_run(model)
    assert caught.value.where.layer == 1
    assert "test_errors.py" in str(caught.value.where.source)
    torch.compiler.reset()
    compile_and_run(model, connectivity="mlp")
    assert farskip_compile.reports().compiles[-1].outcome is Outcome.REWIRED
    torch.compiler.reset()
    compile_and_run(model.eval())
    assert farskip_compile.reports().compiles[-1].outcome is Outcome.REWIRED


def experts_on_rank(rank: int, world_size: int) -> str:
    try:
        build("mixtral", experts=3, parallel=ParallelConfig(ep_group=torch.distributed.group.WORLD))
    except ParallelismError as error:
        return str(error)
    return "not refused"


def test_world_size_that_does_not_divide_the_experts() -> None:
    with pytest.raises(ParallelismError, match="3 experts can't be divided among 2 ranks"):
        shard_size(3, 2, "experts")
    for answer in run_ranks(experts_on_rank, 2):
        assert "can't be divided among 2 ranks" in answer
        assert "way out" in answer


def test_errors_survive_pickling_and_show_their_parts() -> None:
    error = LayerRangeError("too far", way_out="come back", where=farskip_compile.errors.Where(layer=3, node="add_7"))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (LayerRangeError, str(error))
    assert str(error) == "too far\n  where:   layer 3, node 'add_7'\n  way out: come back"


def test_a_refusal_leaves_the_graph_as_it_was() -> None:
    graphs: list[tuple[str, str]] = []

    def run_twice(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        before = module.graph.python_code("self").src
        with pytest.raises(LayerRangeError):
            farskip_compile.compiler.pipeline.run(module, FarSkipConfig(layers=(0, 9)))
        graphs.append((before, module.graph.python_code("self").src))
        return module.forward

    model = build("llama4", **SMALL)
    assert torch.equal(torch.compile(model, backend=run_twice, fullgraph=True)(IDS), model(IDS))
    assert graphs[0][0] == graphs[0][1]
