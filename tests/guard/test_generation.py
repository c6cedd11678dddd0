# SPDX-License-Identifier: Apache-2.0
"""`generate` that would compile decode steps only, with this backend, is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from farskip_compile import OriginalWiringError, backend, prepare, reports
from tests.guard.tiny import IDS, tiny

DECODE_ONLY = "the prompt goes through the model in its original wiring"


def generate(model: Any, **options: Any) -> torch.Tensor:
    return model.generate(
        IDS,
        attention_mask=torch.ones_like(IDS),
        max_new_tokens=3,
        do_sample=False,
        cache_implementation="static",
        **options,
    )


def config(name: Any = "farskip", **options: Any) -> transformers.CompileConfig:
    """Of a compile that takes place on all devices, as it does on accelerators."""
    made = transformers.CompileConfig(backend=name, mode=None, dynamic=False, **options)
    made._compile_all_devices = True
    return made


@pytest.fixture
def unprepared() -> Any:
    model = tiny(prepared=False)
    model.set_experts_implementation("batched_mm")
    return model


def test_the_first_decode_step_is_refused(unprepared: Any) -> None:
    for compile_config in (config(options={"inner": "eager"}), config(backend(inner="eager", strict=False))):
        with pytest.raises(OriginalWiringError, match=DECODE_ONLY) as caught:
            generate(unprepared, compile_config=compile_config)
        assert 'model.compile(backend="farskip", fullgraph=True)' in caught.value.way_out
    assert not reports().compiles


def test_other_backends_are_left_alone(unprepared: Any) -> None:
    expected = generate(unprepared)
    assert torch.equal(generate(unprepared, compile_config=config("eager")), expected)
    assert hasattr(unprepared, "_compiled_call")
    prepare(unprepared)
    assert torch.equal(generate(unprepared, compile_config=config("eager")), expected)


def test_a_prepared_model_refuses_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """`disable_compile` would make it plain from end to end."""
    model = tiny()
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: pytest.fail("the model ran"))
    for compile_config in (config(), config(backend(inner="eager"))):
        own = transformers.GenerationConfig(compile_config=compile_config)
        for options in ({"compile_config": compile_config}, {"generation_config": own}):
            with pytest.raises(OriginalWiringError, match=DECODE_ONLY):
                generate(model, **options)


def test_a_model_that_is_compiled_in_place_generates(unprepared: Any) -> None:
    preparation = prepare(unprepared)
    plainly = generate(unprepared)
    unprepared.compile(backend="farskip", fullgraph=True, options={"inner": "eager"})
    rewired = generate(unprepared)
    assert torch.equal(generate(unprepared, compile_config=config()), rewired)
    assert not torch.equal(rewired, plainly)
    preparation.undo()
    assert "generate" not in vars(unprepared)
