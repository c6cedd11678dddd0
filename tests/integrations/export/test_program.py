# SPDX-License-Identifier: Apache-2.0
"""An exported program computes what the compiled model does, bit for bit, for all sizes, also after a round trip."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import farskip_compile
from farskip_compile import load_manifest, save_manifest
from farskip_compile.errors import ManifestError
from farskip_compile.models import FarSkipForm, build
from farskip_compile.tools.export import manifest_of
from tests.compare import run_with_gradients

IDS = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(0))
SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32}
SIZES = ((2, 6), (3, 5), (1, 9), (4, 1), (1, 1))


def small(**options: Any) -> nn.Module:
    return build("deepseek_v3", layers=("moe", "moe"), **SMALL, **options).eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small()


@pytest.fixture(scope="module")
def program(model: nn.Module) -> torch.export.ExportedProgram:
    return farskip_compile.export(model, IDS, dynamic_shapes={"ids": {0: Dim("batch"), 1: Dim("tokens", max=64)}})


def test_it_equals_the_compiled_model_and_the_form_by_hand(model: Any, program: Any) -> None:
    compiled = torch.compile(model, backend="farskip", fullgraph=True, dynamic=True, options={"inner": "eager"})
    exported, by_hand = program.module(), FarSkipForm(model)
    with torch.no_grad():
        for number, sizes in enumerate(SIZES):
            ids = torch.randint(0, 32, sizes, generator=torch.Generator().manual_seed(number))
            found = exported(ids)
            assert torch.equal(found, by_hand(ids)), sizes
            assert number > 1 or torch.equal(found, compiled(ids)), sizes
        assert not torch.equal(exported(IDS), model(IDS))


def test_its_parameters_are_those_of_the_model(model: Any, program: Any) -> None:
    assert program.state_dict.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(program.state_dict[name], value), name
    other = small(seed=1)
    exported = program.module()
    exported.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert torch.equal(exported(IDS), FarSkipForm(other)(IDS))


def test_gradients(model: Any, program: Any) -> None:
    exported = program.module()
    output, gradients = run_with_gradients(exported, exported, IDS)
    expected, by_hand = run_with_gradients(FarSkipForm(model), model, IDS)
    assert torch.equal(output, expected)
    assert gradients.keys() == by_hand.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, by_hand[name]), name


def test_round_trip(model: Any, program: Any, tmp_path: Any) -> None:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    manifest = manifest_of(loaded)
    assert manifest == manifest_of(program) == farskip_compile.describe(model, IDS)
    assert load_manifest(save_manifest(manifest, tmp_path / "farskip.json")) == manifest
    assert {row.name for row in manifest.table.rows if row.left_out} == {"moe.0", "attention.1", "moe.1"}
    with torch.no_grad():
        for sizes in SIZES[:3]:
            ids = torch.randint(0, 32, sizes, generator=torch.Generator().manual_seed(7))
            assert torch.equal(loaded.module()(ids), FarSkipForm(model)(ids)), sizes


def test_a_plain_program_has_no_manifest(model: Any) -> None:
    plain = torch.export.export(model, (IDS,))
    with pytest.raises(ManifestError, match="no manifest in the program"):
        manifest_of(plain)


def test_a_compiled_model_is_exported_as_it_is_compiled_or_as_asked() -> None:
    model, options = small(), {"inner": "eager", "connectivity": "attention"}
    wrapper = torch.compile(model, backend="farskip", fullgraph=True, options=options)
    program = farskip_compile.export(wrapper, IDS)
    assert manifest_of(program).connectivity == "attention"
    assert program.state_dict.keys() == model.state_dict().keys()
    model.compile(backend="farskip", fullgraph=True, options=options)
    manifest = farskip_compile.describe(model, IDS, connectivity="mlp")
    with torch.no_grad():
        attention = FarSkipForm(model, connectivity="attention")(IDS)
        assert torch.equal(program.module()(IDS), attention)
        assert torch.equal(farskip_compile.export(model, IDS).module()(IDS), attention)
        other = farskip_compile.export(model, IDS, manifest=manifest)
        assert torch.equal(other.module()(IDS), FarSkipForm(model, connectivity="mlp")(IDS))


class Around(nn.Module):
    """A model in a model, which counts its calls in a buffer, and has a hook and an argument that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("scale", torch.full((), 3.0), persistent=False)
        self.table = torch.arange(2.0)  # neither a parameter nor a buffer
        self.inner.register_forward_hook(lambda *call: call[-1] * 2)

    def forward(self, ids: torch.Tensor, more: dict[str, torch.Tensor], *, flag: bool = False) -> dict[str, Any]:
        self.calls.add_(1)
        logits = self.inner(ids) * self.scale * self.table[1]
        return {"logits": logits - 1 if flag else logits, "given": (more["there"], None), "tokens": ids.shape[1]}


def test_buffers_hooks_constants_and_structures() -> None:
    model = Around().eval()
    shapes = {"ids": {1: Dim.DYNAMIC}, "more": {"there": None}, "flag": None}
    with torch.no_grad():
        program = farskip_compile.export(model, IDS, {"there": IDS}, flag=True, dynamic_shapes=shapes)
        assert int(model.calls) == 0
        exported, there, ids = program.module(), torch.ones_like(IDS), IDS[:, :4]
        found = [exported(ids, {"there": there}, flag=True) for _ in range(2)][-1]
        assert int(exported.calls) == 2
        assert torch.equal(found["logits"], FarSkipForm(model.inner)(ids) * 2 * 3 - 1)
        assert torch.equal(found["given"][0], there)
        assert (found["given"][1], found["tokens"]) == (None, 4)
        assert "scale" not in program.state_dict
