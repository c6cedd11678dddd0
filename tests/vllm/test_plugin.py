"""What a configuration asks for, what workers assert, and how graphs are edited: without vLLM."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx, nn

from farskip_compile import declare
from farskip_compile.errors import ConfigError, ManifestError, OriginalWiringError, VerificationError
from farskip_compile.manifest import Manifest, save_manifest
from farskip_compile.manifest.check import check_as_written
from farskip_compile.manifest.fingerprint import Fingerprint
from farskip_compile.manifest.graph_parameters import GraphParameters
from farskip_compile.passes.graph import ops
from farskip_compile.passes.residual.table import Table
from farskip_compile.vllm import asked as asking
from farskip_compile.vllm import backends, norms, operators, outcome, overlap, rewiring, shared_experts
from farskip_compile.vllm.asked import Asked, Options, settle
from tests.vllm import fake_operators


def config(folder: Any, additional: Any = None, backend: str = "inductor") -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(model=str(folder), revision=None),
        compilation_config=SimpleNamespace(backend=backend),
        additional_config={} if additional is None else additional,
    )


def test_nobody_asks(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    plain = config(tmp_path)
    assert settle(plain) is None
    assert plain.additional_config == {}


def test_who_asks_first(tmp_path):
    """Options, the manifest beside the weights, AMD's keys, the name of the backend."""
    assert settle(config(tmp_path, backend="farskip")).by.endswith("backend 'farskip'")
    (tmp_path / "config.json").write_text(json.dumps({"farskip": True, "num_hidden_layers": 4}))
    assert settle(config(tmp_path)).config().connectivity is None
    assert settle(config(tmp_path)).manifest.connectivity == "full"
    save_manifest(Manifest("mlp"), tmp_path / "farskip.json", guard=False)
    assert settle(config(tmp_path)).by == f"the manifest {tmp_path / 'farskip.json'}"
    assert settle(config(tmp_path, {"farskip": {"overlap": True}})).by == "additional_config['farskip']"
    assert settle(config(tmp_path, {"farskip": {"overlap": True}})).manifest.connectivity == "mlp"
    with pytest.raises(ConfigError, match="contradicts the manifest"):
        settle(config(tmp_path, {"farskip": {"connectivity": "full"}}))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("full", "not a mapping of options"),
        ({"conectivity": "full"}, "unknown option 'conectivity'"),
        ({"overlap": "yes"}, "overlap='yes' is neither true nor false"),
    ],
)
def test_wrong_options(tmp_path, options, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        settle(config(tmp_path, {"farskip": options}))
    assert caught.value.way_out


def test_a_manifest_that_changes_nothing_asks_for_nothing(tmp_path):
    save_manifest(Manifest("none"), tmp_path / "farskip.json", guard=False)
    assert settle(config(tmp_path)) is None


def test_settling_twice_is_settling_once_and_a_change_is_seen(tmp_path):
    save_manifest(Manifest("full"), tmp_path / "farskip.json", guard=False)
    found = config(tmp_path, {"other": 1})
    first = settle(found)
    settled = found.additional_config
    assert settled["other"] == 1
    assert json.loads(json.dumps(settled)) == settled, "vLLM hashes it as JSON"
    assert settle(found).digest == first.digest
    assert found.additional_config == settled
    save_manifest(Manifest("mlp"), tmp_path / "farskip.json", guard=False)
    with pytest.raises(ManifestError, match="has changed while vLLM started"):
        settle(found)


def test_the_digest_tells_options_manifests_and_sources_apart(monkeypatch):
    ask = [
        Asked(Options(connectivity="full"), None, "a"),
        Asked(Options(connectivity="mlp"), None, "a"),
        Asked(Options(), Manifest("full"), "a"),
        Asked(Options(), Manifest("mlp"), "a"),
    ]
    digests = {one.digest for one in ask}
    monkeypatch.setattr(asking, "source_hash", lambda: "another")
    assert len(digests | {ask[0].digest}) == 5


FULL = Asked(Options(connectivity="full"), None, "a test")


class Compiled(nn.Module):
    do_not_compile = False

    def __call__(self) -> str:
        return "compiled"


def worker(model: nn.Module) -> Any:
    return SimpleNamespace(rank=0, model_runner=SimpleNamespace(get_model=lambda: model))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(outcome, "ran", found)
    return found


def said(what: str, asked: Asked = FULL) -> dict[str, Any]:
    return {"digest": asked.digest, "outcome": what, "said": what}


def test_a_worker_that_ran_rewired_code(ran, caplog):
    ran += [said("no residual stack"), said("rewired")]
    with caplog.at_level("INFO", logger="vllm.farskip"):
        outcome.check(worker(Compiled()), FULL)
    assert "rank 0: rewired (asked by a test)" in caplog.text


@pytest.mark.parametrize(
    ("what", "model", "reason"),
    [
        ([], Compiled(), "none of its compiled code has run"),
        ([], nn.Linear(1, 1), "compiles no part of its class"),
        (["no residual stack"], Compiled(), "no graph of it that ran has a residual stack"),
        (["refused, compiled unchanged"], Compiled(), "asks for a rewired model"),
    ],
)
def test_a_worker_that_did_not(ran, what, model, reason):
    ran += map(said, what)
    with pytest.raises(OriginalWiringError, match=reason):
        outcome.check(worker(model), FULL)


def test_a_worker_whose_model_is_not_compiled(ran):
    model = Compiled()
    model.do_not_compile = True
    with pytest.raises(OriginalWiringError, match="does not compile Compiled in this configuration"):
        outcome.check(worker(model), FULL)


def test_a_worker_that_ran_stale_code(ran):
    ran.append(said("rewired", Asked(Options(connectivity="mlp"), None, "yesterday")))
    with pytest.raises(VerificationError, match="stale compiled code ran"):
        outcome.check(worker(Compiled()), FULL)


def test_a_manifest_of_which_nothing_was_rewired(ran):
    asked = Asked(Options(), Manifest("full"), "a manifest")
    ran.append(said("unchanged as asked", asked))
    with pytest.raises(OriginalWiringError, match="nothing was rewired"):
        outcome.check(worker(Compiled()), asked)


def test_from_then_on_no_step_runs_uncompiled(ran, monkeypatch):
    context = ModuleType("vllm.forward_context")
    context.is_forward_context_available = lambda: True
    context.get_forward_context = lambda: SimpleNamespace(skip_compiled=skipped)
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.forward_context", context)

    class Model(Compiled):
        pass

    ran.append(said("rewired"))
    outcome.check(worker(model := Model()), FULL)
    outcome.check(worker(model), FULL)
    skipped = False
    assert model() == "compiled"
    skipped = True
    with pytest.raises(OriginalWiringError, match="a step of Model uncompiled"):
        model()
    context.is_forward_context_available = lambda: False
    assert model() == "compiled"


def test_a_graph_says_what_it_is_each_time_another_one_runs(monkeypatch):
    monkeypatch.setattr(rewiring, "ran", [])
    monkeypatch.setattr(rewiring, "_texts", set())
    text = json.dumps(said("rewired"))
    for _ in range(2):
        torch.ops.farskip.served(text)
    assert rewiring.ran == [said("rewired")]


def test_what_a_graph_says_is_no_dead_code():
    graph = fx.Graph()
    graph.call_function(torch.ops.farskip.served.default, ("said",))
    graph.output(())
    graph.eliminate_dead_code()
    assert [ops.op_name(node) for node in graph.nodes if node.op == "call_function"] == ["farskip::served"]


@pytest.mark.parametrize(("given", "inner"), [("farskip", "inductor"), ("inductor", "inductor"), ("eager", "eager")])
def test_whole_graphs_go_to_one_of_torchs_backends(given, inner):
    compilation = SimpleNamespace(inductor_compile_config={"max_autotune": True})
    whole = backends.rewiring_backend(given, compilation, FULL)
    assert whole.inner == inner
    assert whole.inductor == (compilation.inductor_compile_config if inner == "inductor" else {})


class Pieces:
    """As vLLM's backend of mode 3."""

    def __call__(self, graph: Any, inputs: Any) -> Any:
        return "in pieces", graph


def test_graphs_in_pieces_are_rewired_before_vllm_splits_them(monkeypatch):
    monkeypatch.setattr(backends, "rewire", lambda graph, *_, order, **__: graph.append(f"rewired, ordered={order}"))
    compilation = SimpleNamespace(splitting_ops=["vllm::attention"])
    found = backends.rewiring_backend(plain := Pieces(), compilation, FULL)
    assert found is plain
    assert isinstance(found, Pieces)
    assert type(found).__qualname__ == "Pieces", "a part of vLLM's cache key"
    assert found([], ()) == ("in pieces", ["rewired, ordered=True"])
    assert compilation.splitting_ops == ["vllm::attention"]
    backends.rewiring_backend(Pieces(), compilation, Asked(Options(overlap=True), None, "a test"))
    assert compilation.splitting_ops == ["vllm::attention", *overlap.SPLITTING]


# Fused parameters

KNOWN = Fingerprint({"model.layers.0.norm.weight": (8,), "model.layers.0.q.weight": (8, 8)}, {})


def shown(**shapes: tuple[int, ...]) -> GraphParameters:
    names = {name.replace("_", "."): shape for name, shape in shapes.items()}
    return GraphParameters(names, tuple(names))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (shown(layers_0_norm_weight=(8,), layers_0_qkv_weight=(24, 8)), None),
        (shown(layers_0_norm_weight=(16,), layers_0_qkv_weight=(24, 8)), "has shape"),
        (shown(layers_0_bias=(8,)), "no parameter that the graph shows has a name"),
    ],
)
def test_parameters_that_go_by_one_name_are_compared(parameters, reason):
    manifest = Manifest("full", fingerprint=KNOWN, fused=True)
    if reason is None:
        check_as_written(manifest, Table(), parameters)
    else:
        with pytest.raises(ManifestError, match=reason):
            check_as_written(manifest, Table(), parameters)
    with pytest.raises(ManifestError):  # and without `fused` each of them is another model
        check_as_written(Manifest("full", fingerprint=KNOWN), Table(), parameters)


def test_fused_is_not_a_part_of_what_a_manifest_says():
    assert Manifest("full", fused=True).digest == Manifest("full").digest
    assert "fused" not in Manifest("full", fused=True).to_json()


# Shared experts


class Runner:
    """The parts of vLLM's runner that matter."""

    def __init__(self, **attributes: Any) -> None:
        self._shared_experts = SimpleNamespace(_layer=lambda x: x * 2)
        self._fse_fuse_gate = False
        self.routed_input_transform = self.routed_output_transform = None
        self.routed_scaling_factor = 1.0
        self.moe_config = SimpleNamespace(
            tp_size=2, ep_size=1, is_sequence_parallel=False, skip_final_all_reduce=False, in_dtype=torch.float16
        )
        vars(self).update(attributes)

    def forward(self, hidden: Any, logits: Any, ids: Any = None, shared: Any = None) -> Any:
        return hidden * (11 if self._shared_experts is not None else 10)

    def _select_forward(self) -> str:
        return "routed"

    def _maybe_reduce_shared_expert_output(self, value: Any, reduced: bool) -> Any:
        assert reduced
        return value * 100


def can_move(**attributes: Any) -> bool:
    return shared_experts._can_move(Runner(**attributes))


def test_shared_experts_are_moved_where_nothing_speaks_against_it():
    assert can_move()
    assert not can_move(_shared_experts=None)
    assert not can_move(_fse_fuse_gate=True)
    assert not can_move(routed_output_transform=abs)
    assert not can_move(routed_input_transform=abs)
    assert not can_move(routed_scaling_factor=2.5), "float16 needs the scale on both sides"
    for name in ("is_sequence_parallel", "skip_final_all_reduce"):
        runner = Runner()
        setattr(runner.moe_config, name, True)
        assert not shared_experts._can_move(runner), name
    runner = Runner(routed_scaling_factor=2.5)
    runner.moe_config.in_dtype = torch.bfloat16
    assert shared_experts._can_move(runner)


class Wider(Runner):
    """One that `install` may change."""


def test_shared_experts_that_were_moved_are_reduced_by_themselves(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", types := ModuleType("vllm"))
    types.config = ModuleType("vllm.config")
    types.config.get_current_vllm_config = lambda: None
    monkeypatch.setitem(sys.modules, "vllm.config", types.config)
    monkeypatch.setattr(shared_experts, "settle", lambda _: Asked(Options(overlap=True), None, "a test"))
    plain = Wider().forward(1, None)
    shared_experts.install(Wider)
    shared_experts.install(Wider)  # changes nothing
    moved = Wider()
    assert plain == 11
    assert moved.forward(1, None) == 2 * 100 + 10
    assert moved.forward(1, None, None, 3) == 3 * 2 * 100 + 10, "shared experts may have an input of their own"
    moved.moe_config.tp_size = 1
    assert moved.forward(1, None) == 2 + 10
    monkeypatch.setattr(shared_experts, "settle", lambda _: Asked(Options(), None, "a test"))
    assert Wider().forward(1, None) == 11


# Products and experts by schema


def declared_by_schema(schema: str, *values: torch.Tensor | tuple[str, torch.Tensor], gives: Any = None) -> Any:
    """What one call of an operator of this schema is declared to be; `("held", tensor)`: the model holds it."""
    library = torch.library.Library("_C", "FRAGMENT")
    library.define(schema)
    _libraries.append(library)
    graph = fx.Graph()
    args = []
    for number, value in enumerate(values):
        held = isinstance(value, tuple)
        args.append(graph.create_node("get_attr" if held else "placeholder", f"x{number}"))
        args[-1].meta["example_value"] = value[1] if held else value
    call = graph.call_function(getattr(torch.ops._C, schema.split("(")[0]).default, tuple(args))
    call.meta["example_value"] = gives
    return operators.declare_by_schema(graph).get(f"_C::{schema.split('(')[0]}")


def test_products_and_experts_go_by_their_schemas(monkeypatch):
    monkeypatch.setattr(declare, "_declared", {})
    x, ids, scales = torch.empty(6, 4), torch.empty(6, 2, dtype=torch.long), torch.empty(6, 1)
    w, experts, held_ids = ("held", torch.empty(4, 8)), ("held", torch.empty(3, 8, 4)), ("held", ids)
    out = torch.empty(6, 8)
    found = declared_by_schema
    assert found("t1_moe(Tensor x, Tensor w, Tensor ids) -> Tensor", x, experts, ids, gives=x) == "routed"
    assert found("t2_moe(Tensor x, Tensor w) -> Tensor", x, experts, gives=x) is None, "nothing is chosen"
    assert found("t3_moe(Tensor x, Tensor w, Tensor ids) -> Tensor", x, experts, held_ids, gives=x) is None
    assert found("t4_moe(Tensor x, Tensor w, Tensor ids) -> Tensor", x, w, ids, gives=x) is None, "one matrix"
    assert found("t1_mm(Tensor x, Tensor w) -> Tensor", x, w, gives=out) == "dense"
    assert found("t2_mm(Tensor x, Tensor y) -> Tensor", x, torch.empty(4, 8), gives=out) is None, "two activations"
    assert found("t3_mm(Tensor x, Tensor y, Tensor w) -> Tensor", x, x, w, gives=out) is None, "one more"
    assert found("t4_mm(Tensor x, Tensor s, Tensor w) -> Tensor", x, scales, w, gives=out) == "dense"
    assert found("t5_mm(Tensor(a!) out, Tensor x, Tensor w) -> ()", out, x, w) == "dense"
    assert found("t6_mm(Tensor(a!) out, Tensor x, Tensor w) -> ()", out[:5], x, w) is None, "other rows"
    assert found("t7_mm(Tensor x, Tensor w) -> Tensor[]", x, w, gives=[out, out]) is None, "two results"
    assert found("t8_mixer(Tensor x, Tensor w) -> Tensor", x, w, gives=out) is None, "is not called one"


# Adds and norms


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (torch.empty(3, 4), torch.empty(3, 4), 1),
        (torch.empty(1, 4), torch.empty(4), 0),
        (torch.empty(3, 4), torch.empty(3, 4, dtype=torch.bfloat16), 0),
        (torch.empty(3, 4, dtype=torch.bfloat16), torch.empty(3, 4, dtype=torch.bfloat16), 1),
    ],
    ids=["alike", "broadcast", "another dtype", "half"],
)
def test_a_norm_is_joined_with_a_sum_of_two_alike_only(first, second, joined):
    """The operator takes two of one shape and dtype, and gives their sum in that."""
    fake_operators.register()
    graph = fx.Graph()
    x, y, weight = (graph.placeholder(name) for name in ("x", "y", "weight"))
    total = graph.call_function(torch.add, (x, y))
    norm = graph.call_function(torch.ops.vllm_ir.rms_norm.default, (total, weight, 1e-6))
    graph.output((norm, total))
    values = (first, second, torch.empty(4), first + second, first + second)
    for node, value in zip((x, y, weight, total, norm), values, strict=True):
        node.meta["example_value"] = value
    assert norms.join(graph) == joined


# Writes over shared memory


def doubled(handle: int, data: torch.Tensor) -> None:
    data.mul_(2)


@pytest.fixture
def shm_allreduce() -> None:
    if not hasattr(torch.ops._C, "shm_allreduce"):
        library = torch.library.Library("_C", "FRAGMENT")
        _libraries.append(library)
        library.define("shm_allreduce(int handle, Tensor(a!) data) -> ()")
        library.impl("shm_allreduce", doubled, "CPU")


_libraries: list[torch.library.Library] = []


@pytest.mark.usefixtures("shm_allreduce")
def test_one_whose_memory_is_read_under_another_name_stays():
    from farskip_compile.vllm import shared_memory

    graph = fx.Graph()
    x = graph.placeholder("x")
    value = graph.call_function(torch.relu, (x,))
    other = graph.call_method("view", (value, 2))
    write = graph.call_function(torch.ops._C.shm_allreduce.default, (0, value))
    graph.output((graph.call_function(torch.neg, (other,)),))
    held = torch.empty(2)
    for node in graph.nodes:
        if node.op != "output":
            node.meta["example_value"] = held if node in (value, other) else torch.empty(2)
    write.meta["example_value"] = None
    assert shared_memory.write_out(graph) == 0
    assert fx.GraphModule(nn.Module(), graph)(torch.ones(2))[0].tolist() == [-2, -2]


@pytest.mark.usefixtures("shm_allreduce")
def test_an_all_reduce_in_place_is_written_as_one_that_returns_the_sum():
    from farskip_compile.vllm import shared_memory

    graph = fx.Graph()
    x = graph.placeholder("x")
    value = graph.call_function(torch.relu, (x,))
    early = graph.call_function(torch.neg, (value,))
    write = graph.call_function(torch.ops._C.shm_allreduce.default, (0, value))
    late = graph.call_function(torch.neg, (value,))
    graph.output((early, late))
    for node in (x, value, early, late):
        node.meta["example_value"] = torch.empty(2, device="meta")
    write.meta["example_value"] = None
    assert shared_memory.write_out(graph) == 1
    assert "farskip::shm_all_reduce" in [ops.op_name(node) for node in graph.nodes]
    module = fx.GraphModule(nn.Module(), graph)
    assert [one.tolist() for one in module(torch.ones(2))] == [[-1, -1], [-2, -2]]
