# SPDX-License-Identifier: Apache-2.0
"""What becomes of the backend that vLLM has chosen: without vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import fx, nn

from farskip_compile import FarSkipConfig
from farskip_compile.compiler import inner
from farskip_compile.compiler.backend import Backend
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.vllm import backends, overlap
from farskip_compile.vllm.asked import Asked, ServingOptions

FULL = Asked(ServingOptions(connectivity="full"), None, "a test")


@pytest.mark.parametrize(("given", "expected"), [("farskip", "inductor"), ("inductor", "inductor"), ("eager", "eager")])
def test_whole_graphs_go_to_one_of_torchs_backends(given, expected):
    compilation = SimpleNamespace(inductor_compile_config={"max_autotune": True})
    whole = backends.rewiring_backend(given, compilation, FULL)
    assert whole.inner == expected
    assert whole.inductor == (compilation.inductor_compile_config if expected == "inductor" else {})


def test_vllm_gets_compiled_code_as_it_is(monkeypatch):
    """A function around the compiled code can't be serialised, and vLLM would not start."""
    compiled = object()
    monkeypatch.setattr(inner, "lookup_backend", lambda name: lambda graph, inputs: compiled)
    known = (Backend(FarSkipConfig(inner="eager")), CompileReport(Outcome.REWIRED, 0, {}))
    monkeypatch.setattr(backends, "rewire", lambda *_, **__: known)
    whole = backends.rewiring_backend("eager", SimpleNamespace(inductor_compile_config={}), FULL)
    assert whole(fx.symbolic_trace(nn.Identity()), ()) is compiled


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
    backends.rewiring_backend(Pieces(), compilation, Asked(ServingOptions(overlap=True), None, "a test"))
    assert compilation.splitting_ops == ["vllm::attention", *overlap.SPLITTING]
