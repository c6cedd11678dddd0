# SPDX-License-Identifier: Apache-2.0
"""Guarded models, where transformers is not installed and while they are trained."""

from __future__ import annotations

import sys

import pytest
import torch

from farskip_compile import OriginalWiringError, unguard
from farskip_compile.guard.forward import guard
from farskip_compile.models import build


def test_a_model_is_guarded_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    model, ids = build("mixtral", layers=("moe",), vocab_size=32, hidden_size=32), torch.ones(1, 4, dtype=torch.long)
    expected = model(ids)
    guard(model, None, trained=True)
    with pytest.raises(OriginalWiringError, match="is trained in a FarSkip form") as caught:
        model(ids)
    assert "model(...)" in caught.value.way_out
    unguard(model)
    assert torch.equal(model(ids), expected)
