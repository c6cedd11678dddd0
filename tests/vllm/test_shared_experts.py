# SPDX-License-Identifier: Apache-2.0
"""Shared experts out of the operator that hides them: with a stand-in for vLLM's runner."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from farskip_compile.vllm import shared_experts
from farskip_compile.vllm.asked import Asked, ServingOptions


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
    monkeypatch.setattr(shared_experts, "settle", lambda _: Asked(ServingOptions(overlap=True), None, "a test"))
    plain = Wider().forward(1, None)
    shared_experts.install(Wider)
    shared_experts.install(Wider)  # changes nothing
    moved = Wider()
    assert plain == 11
    assert moved.forward(1, None) == 2 * 100 + 10
    assert moved.forward(1, None, None, 3) == 3 * 2 * 100 + 10, "shared experts may have an input of their own"
    moved.moe_config.tp_size = 1
    assert moved.forward(1, None) == 2 + 10
    monkeypatch.setattr(shared_experts, "settle", lambda _: Asked(ServingOptions(), None, "a test"))
    assert Wider().forward(1, None) == 11
