# SPDX-License-Identifier: Apache-2.0
"""Shared experts out of the operator that hides them, where that lets their all-reduce run under the routed experts.

In:    vLLM's `MoERunner`, which runs shared and routed experts in one operator and reduces their sum.
Out:   for models that are asked to overlap: the shared experts as operators of the graph, before the routed ones, each
       of the two reduced by itself. The sum is the same, but for the order of its additions.
Never: does that where vLLM's runner has a reason to keep them together: experts fused into the routed kernel, a latent
       space, a scale that float16 needs on both sides, a reduction that somebody else does.

Routed experts may write over their input, so the shared ones come first.
"""

from __future__ import annotations

from typing import Any

import torch

from farskip_compile.vllm.asked import Asked, settle

MOVED = "farskip_shared_experts"
"""Attribute of a runner: a tuple, so that no parameter gets a second name."""


def install(runner_class: Any) -> None:
    """Let runners that are made from now on move their shared experts out, if that is asked for."""
    if hasattr(runner_class, MOVED):
        return
    setattr(runner_class, MOVED, ())
    plain_init, plain_forward = runner_class.__init__, runner_class.forward

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        plain_init(self, *args, **kwargs)
        from vllm.config import get_current_vllm_config

        if _is_asked(settle(get_current_vllm_config())) and _can_move(self):
            setattr(self, MOVED, (self._shared_experts._layer,))
            self._shared_experts = None
            self._forward_entry = self._select_forward()

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        shared_experts_input: torch.Tensor | None = None,
    ) -> torch.Tensor:
        moved = getattr(self, MOVED)
        if not moved:
            return plain_forward(self, hidden_states, router_logits, input_ids, shared_experts_input)
        shared = moved[0](hidden_states if shared_experts_input is None else shared_experts_input)
        if self.moe_config.tp_size > 1 or self.moe_config.ep_size > 1:
            shared = self._maybe_reduce_shared_expert_output(shared, True)
        return shared + plain_forward(self, hidden_states, router_logits, input_ids)

    runner_class.__init__, runner_class.forward = __init__, forward


def _is_asked(asked: Asked | None) -> bool:
    return asked is not None and asked.options.overlap


def _can_move(runner: Any) -> bool:
    together = (
        runner._shared_experts is None
        or runner._fse_fuse_gate
        or runner.routed_input_transform is not None
        or runner.routed_output_transform is not None
        or runner.moe_config.is_sequence_parallel
        or runner.moe_config.skip_final_all_reduce
    )
    scaled = runner.routed_scaling_factor != 1.0 and runner.moe_config.in_dtype == torch.float16
    return not together and not scaled
