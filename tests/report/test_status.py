# SPDX-License-Identifier: Apache-2.0
"""`farskip_compile.status` answers for the model that it is asked about, however that is compiled or wrapped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import farskip_compile
from farskip_compile import FarSkipWarning, Status, status
from farskip_compile.models import build
from farskip_compile.tools.status import Answer, How

IDS = torch.arange(8).view(1, 8)
OPTIONS = {"inner": "eager"}
YES, NO, UNKNOWN = Answer.REWIRED, Answer.NOT_REWIRED, Answer.UNKNOWN
PHRASES = [
    "attention leaves out the routed experts of the layer before",
    "moe leaves out the attention of its own layer",
]


def model_of(layers: int = 2) -> Any:
    return build("mixtral", vocab_size=16, hidden_size=32, layers=("moe",) * layers)


def in_place(model: Any, **options: Any) -> Any:
    model.compile(backend="farskip", options={**OPTIONS, **options})
    return model


def rows(found: Status) -> tuple[int, int | None, int]:
    assert found.rows is not None
    return len(found.rows.rewired), None if found.rows.asked is None else len(found.rows.asked), found.rows.total


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_before_and_after_the_first_call() -> None:
    model = model_of()
    found = status(model)
    assert (found.answer, found.how, found.rewired) == (NO, How.NOT, False)
    in_place(model)
    found = status(model)
    assert (found.answer, found.how, found.rows, len(found.outside)) == (UNKNOWN, How.IN_PLACE, None, found.parameters)
    model(IDS)
    found = status(model)
    assert (found.answer, found.rewired, rows(found), found.outside) == (YES, True, (3, 3, 4), ())
    assert found.left_out == {"attention.1": ("r0",), "moe.0": ("a0",), "moe.1": ("a1",)}
    assert (found.overlap, found.no_overlap) == ((), "one process")
    assert "none" in found.manifest
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    assert all(phrase in text for phrase in ["REWIRED: Decoder, compiled in place", "3 of 3 rows", *PHRASES])
    said = json.loads(json.dumps(found.to_json()))
    assert (said["rewired"], said["rows_rewired"], said["rows_asked"], said["rows"]) == (True, 3, 3, 4)
    torch.compiler.reset()
    assert status(model).answer is UNKNOWN, "what PyTorch has forgotten does not run any more"


def test_models_of_one_class_share_what_is_compiled_and_stay_apart() -> None:
    first, second = in_place(model_of()), in_place(model_of())
    for _ in range(2):
        first(IDS)
    assert (status(first).answer, status(second).answer) == (YES, UNKNOWN)
    compiled = len(farskip_compile.reports().compiles)
    second(IDS)
    assert len(farskip_compile.reports().compiles) == compiled, "the second one was not compiled anew"
    assert (status(first).answer, status(second).answer, status(second).outside) == (YES, YES, ())


def test_a_wrapper_and_the_model_in_it() -> None:
    model = model_of()
    wrapper = torch.compile(model, backend="farskip", options=OPTIONS)
    wrapper(IDS)
    assert (status(wrapper).answer, status(wrapper).how) == (YES, How.WRAPPED)
    assert (status(model).answer, status(model).how) == (YES, How.AROUND)
    assert "only calls of the wrapper" in str(status(wrapper))
    part = status(model.layers[0])
    assert (part.answer, part.reports) == (UNKNOWN, ())
    assert "ask for the whole" in part.why


def test_the_last_options_count() -> None:
    model = in_place(model_of(), connectivity="none")
    model(IDS)
    found = status(model)
    assert (found.answer, rows(found)) == (NO, (0, 0, 4))
    assert "unchanged as asked" in found.why
    in_place(model)
    model(IDS)
    assert status(model).answer is YES
    assert dict(status(model).graphs) == {"rewired": 1, "unchanged as asked": 1}


def test_another_backend_is_not_ours() -> None:
    model = model_of()
    model.compile(backend="eager")
    model(IDS)
    assert status(model).answer is UNKNOWN


def test_a_refused_model_and_a_mixture() -> None:
    dense = in_place(build("deepseek_v3", layers=("dense", "dense")), strict=False)
    with pytest.warns(farskip_compile.FarSkipWarning):
        dense(IDS)
    found = status(dense)
    assert (found.answer, found.rows.asked) == (NO, None)
    assert "no routed experts" in found.why


class Parts(nn.Module):
    """A model, and a head after a graph break."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.head = model_of(), nn.Linear(16, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.decoder(ids)
        torch._dynamo.graph_break()
        return self.head(logits)


def test_graph_breaks_and_what_is_in_no_graph() -> None:
    model = in_place(Parts())
    model(IDS)
    found = status(model)
    assert found.answer is YES
    assert dict(found.graphs) == {"rewired": 1, "no residual stack": 1}
    assert ["graph_break" in text for text in found.graph_breaks] == [True]
    assert found.outside == ("unused.weight", "unused.bias")
    assert status(model.head).answer is NO


def test_shared_parameters_are_not_a_shared_answer() -> None:
    teacher, student = in_place(model_of()), in_place(model_of(3))
    student.token_embedding.weight = teacher.token_embedding.weight
    teacher(IDS)
    assert (status(teacher).answer, status(student).answer) == (YES, UNKNOWN)
    assert "shares parameters" in status(student).why


def test_parameters_that_are_replaced_or_added() -> None:
    model = in_place(model_of())
    model(IDS)
    model.double()  # in place: they stay the same objects
    assert status(model).answer is YES
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone()))
    assert status(model).answer is UNKNOWN
    model(IDS)
    assert (status(model).answer, status(model).outside) == (YES, ())
    added = peft.get_peft_model(model, peft.LoraConfig(target_modules=["output"]))
    found = status(added)
    assert found.answer is YES, "what has run was rewired"
    assert len(found.outside) == 4
    assert all("lora" in name for name in found.outside)


def test_peft_around_and_inside() -> None:
    adapted = peft.get_peft_model(model_of(), peft.LoraConfig(target_modules=["output"]))
    in_place(adapted)
    adapted(IDS)
    found = status(adapted)
    assert (found.answer, found.how, found.outside, rows(found)) == (YES, How.IN_PLACE, (), (3, 3, 4))
    assert status(adapted.base_model.model).answer is YES
    inside = model_of()
    adapted = peft.get_peft_model(inside, peft.LoraConfig(target_modules=["output"]))
    in_place(inside)
    adapted(IDS)
    assert (status(adapted).answer, status(adapted).how) == (YES, How.INSIDE)


def test_layer_by_layer() -> None:
    model = model_of(3)
    made = farskip_compile.regional(model, **OPTIONS)
    assert (status(model).answer, status(model).how) == (UNKNOWN, How.LAYERS)
    model(IDS)
    found = status(model)
    assert (found.answer, found.how, rows(found)) == (YES, How.LAYERS, (5, 5, 6))
    assert found.left_out == made.report.left_out
    assert set(found.outside) == {"token_embedding.weight", "final_norm.weight", "lm_head.weight"}
    assert (status(model.layers[1]).answer, status(nn.ModuleList([model])).answer) == (UNKNOWN, YES)
    assert "layers are compiled one by one" in status(model.layers[1]).why
    made.undo()
    assert status(model).answer is not YES


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "layers"])
def test_fsdp2(one_rank: None, layers: bool) -> None:
    model = model_of()
    if layers:
        farskip_compile.regional(model, **OPTIONS)
        for layer in model.layers:
            fully_shard(layer)
    fully_shard(model)
    if not layers:
        in_place(model)
    assert status(model).answer is UNKNOWN
    model(IDS).sum().backward()
    found = status(model)
    assert (found.answer, found.model, rows(found)) == (YES, "Decoder", (3, 3, 4))
    assert all("layers" not in name for name in found.outside)
    other = model_of()
    fully_shard(other)
    assert status(other).answer is NO


def test_ddp(one_rank: None) -> None:
    model = model_of()
    with torch._dynamo.config.patch(optimize_ddp=False):
        outer = torch.compile(nn.parallel.DistributedDataParallel(model), backend="farskip", options=OPTIONS)
        outer(IDS).sum().backward()
        inner = nn.parallel.DistributedDataParallel(torch.compile(model_of(), backend="farskip", options=OPTIONS))
        inner(IDS).sum().backward()
    assert [(status(one).answer, status(one).how) for one in (outer, inner)] == [(YES, How.WRAPPED)] * 2


def test_graphs_without_parameters_belong_to_nobody(one_rank: None) -> None:
    sharded = FullyShardedDataParallel(model_of(), use_orig_params=True, device_id=torch.device("cpu"))
    compiled = torch.compile(sharded, backend="farskip", options=OPTIONS)
    compiled(IDS)
    found = status(compiled)
    assert found.answer is UNKNOWN
    assert "1 graph ran with no parameters at all" in found.why


def test_beyond_the_recompile_limit_it_is_not_rewired() -> None:
    model = in_place(model_of(), strict=False)
    with torch._dynamo.config.patch(recompile_limit=1, automatic_dynamic_shapes=False):
        model(IDS)
        assert status(model).answer is YES
        with pytest.warns(FarSkipWarning, match="recompile_limit"):
            model(IDS[:, :5])
    found = status(model)
    assert found.answer is NO
    assert "recompile_limit" in found.why


def test_nothing_is_called_or_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_place(model_of())
    monkeypatch.setattr(nn.Module, "__call__", None)
    monkeypatch.setattr(torch, "compile", None)
    assert status(model).answer is UNKNOWN
