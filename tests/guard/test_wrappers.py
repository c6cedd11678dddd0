# SPDX-License-Identifier: Apache-2.0
"""What `torch.compile(model)` hands to the model in it: refused once it would run the model, and only then."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from farskip_compile import FarSkipWarning, OriginalWiringError, backend
from tests.guard.tiny import IDS, compiled, tiny


@pytest.fixture
def model() -> Any:
    return tiny()


def generate(model: Any) -> torch.Tensor:
    return model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, do_sample=False)


def test_generate_is_refused(model: Any) -> None:
    for wrapper in (
        compiled(model),
        torch.compile(model, backend="farskip"),
        torch.compile(model, backend=backend(inner="eager")),
    ):
        for _ in range(2):
            with pytest.raises(OriginalWiringError, match="`generate` runs the model in its original wiring") as caught:
                generate(wrapper)
        assert "model.compile(" in caught.value.way_out
    generate(model)  # the model itself is nobody's but the user's


def test_without_strict_it_is_one_warning(model: Any) -> None:
    expected = generate(model)
    for wrapper in (compiled(model, strict=False), torch.compile(model, backend=backend(inner="eager", strict=False))):
        with pytest.warns(FarSkipWarning, match="`generate` runs the model in its original wiring") as caught:
            assert torch.equal(generate(wrapper), expected)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            generate(wrapper)


@pytest.mark.parametrize("strict", [False, True])
def test_export_is_refused(model: Any, strict: bool) -> None:
    with pytest.raises(OriginalWiringError, match=r"torch\.export of what .* in its original wiring"):
        torch.export.export(compiled(model), (IDS,), {"use_cache": False}, strict=strict)


def test_what_does_not_run_the_model_works(model: Any, tmp_path: Path) -> None:
    wrapper = compiled(model)
    wrapper.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert wrapper.get_input_embeddings() is model.model.embed_tokens
    assert wrapper.config is model.config
    assert wrapper.eval() is wrapper
    assert wrapper.state_dict().keys() == {f"_orig_mod.{name}" for name in model.state_dict()}
    with torch.no_grad():
        assert not torch.equal(wrapper(IDS).logits, model(IDS).logits)


def test_other_backends_and_models_compiled_in_place_are_left_alone(model: Any) -> None:
    expected = generate(model)
    other = torch.compile(model, backend="eager")
    assert torch.equal(generate(other), expected)
    assert other.get_input_embeddings.__self__ is model
    torch.export.export(other, (IDS,), {"use_cache": False})
    model.compile(backend="farskip", fullgraph=True, options={"inner": "eager"})
    assert torch.equal(generate(compiled(model)), generate(model))


def test_a_method_that_compiles_what_it_calls(model: Any) -> None:
    """The model is called, but traced for this backend."""

    def rewired(self: Any) -> Any:
        return torch.compile(
            lambda ids: self(ids).logits, backend="farskip", fullgraph=True, options={"inner": "eager"}
        )

    type(model).rewired = lambda self: rewired(self)(IDS)
    try:
        with torch.no_grad():
            assert torch.equal(compiled(model).rewired(), compiled(model)(IDS).logits)
    finally:
        del type(model).rewired
