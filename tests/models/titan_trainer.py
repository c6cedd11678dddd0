# SPDX-License-Identifier: Apache-2.0
"""torchtitan's own trainer on a CPU: what a machine without an accelerator needs, and small configurations.

Contract: `losses` runs the library's trainer as its command does, from the same arguments, and returns what it logs.
The trainer is not replaced. `trainer_on_cpu` answers for what has no meaning on a CPU: names and memory of a device, a
barrier that names CUDA devices, and gloo's missing sum that multiplies first. `deepseek_v3` and `qwen3` are functions
such as `--config` names; they differ from the library's own in the number of layers, the experts' inner size, the
lengths, and in made-up tokens in place of a data set and its tokenizer.
"""

from __future__ import annotations

import dataclasses
import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from tests.models import titan

Step = tuple[float, float]
"""Loss and norm of the gradient."""

WORDS = 64
"""Different tokens in the data."""

ANSWERS: dict[str, Any] = {
    "get_device_name": "cpu",
    "get_device_properties": types.SimpleNamespace(total_memory=2**30),
    "memory_stats": {},
    "reset_peak_memory_stats": None,
    "empty_cache": None,
}
"""Functions of `torch.cuda` that the trainer's logs need, and what they return of a CPU."""


@contextmanager
def trainer_on_cpu() -> Iterator[None]:
    """Where there is no accelerator the library takes CUDA for granted: within the block its device is the CPU."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(patch.object(torch._utils, "_get_available_device_type", lambda: "cpu"))
        for name, answer in ANSWERS.items():
            stack.enter_context(patch.object(torch.cpu, name, lambda *_, answer=answer: answer, create=True))
        stack.enter_context(titan.on_cpu())
        from torchtitan.distributed import fsdp, utils

        undivided = fsdp.disable_fsdp_gradient_division

        def summed(model: nn.Module) -> None:
            """Their factor is one, by which gloo can't multiply."""
            undivided(model)
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.set_force_sum_reduction_for_comms(True)

        stack.enter_context(patch.object(fsdp, "disable_fsdp_gradient_division", summed))
        stack.enter_context(patch.object(utils, "set_pg_timeouts", lambda **_: None))
        yield


def losses(arguments: Sequence[str]) -> list[Step]:
    """What the trainer logs in each step, started with these arguments of its command."""
    from torchtitan.components.metrics import MetricsProcessor
    from torchtitan.config import ConfigManager
    from torchtitan.trainer import Trainer

    logged: list[Step] = []

    def log(self: Any, step: int, average: float, largest: float, norm: float, **_: Any) -> None:
        logged.append((average, norm))

    torch.autograd.set_multithreading_enabled(False)  # as the trainer does where it sets the ranks up
    with patch.object(MetricsProcessor, "log", log), patch("time.sleep"):
        config: Any = ConfigManager().parse_args(list(arguments))
        trainer: Trainer = config.build()
        try:
            trainer.train()
        finally:
            trainer.close()
    return logged


def deepseek_v3() -> Any:
    """A dense layer, then two with eight experts and shared ones."""
    titan.titan("deepseek_v3")
    from torchtitan.models.deepseek_v3.config_registry import deepseek_v3_debugmodel

    return _small(deepseek_v3_debugmodel(), layers=3)


def qwen3() -> Any:
    """Two layers with 64 experts and no shared ones."""
    titan.titan("qwen3")
    from torchtitan.models.qwen3.config_registry import qwen3_moe_debug

    return _small(qwen3_moe_debug(), layers=2)


def _small(config: Any, layers: int) -> Any:
    from torchtitan.components.dataloader import BaseDataLoader
    from torchtitan.components.tokenizer import BaseTokenizer

    class NoTokenizer(BaseTokenizer):
        @dataclasses.dataclass(kw_only=True, slots=True)
        class Config(BaseTokenizer.Config):
            pass

        def __init__(self, config: Any, **_: Any) -> None:
            super().__init__()

        def encode(self, *_: Any, **__: Any) -> list[int]:
            return []

        def decode(self, *_: Any, **__: Any) -> str:
            return ""

        def get_vocab_size(self) -> int:
            return WORDS

    class Walks(BaseDataLoader):
        """Sequences in which each token leaves two choices for the next one, so that twenty steps learn something."""

        @dataclasses.dataclass(kw_only=True, slots=True)
        class Config(BaseDataLoader.Config):
            pass

        def __init__(self, config: Any, *, dp_rank: int, seq_len: int, local_batch_size: int, **_: Any) -> None:
            self.generator = torch.Generator().manual_seed(dp_rank)
            self.shape = (local_batch_size, seq_len + 1)

        def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
            positions = torch.arange(self.shape[1] - 1).repeat(self.shape[0], 1)
            while True:
                ids = torch.randint(1, 3, self.shape, generator=self.generator).cumsum(1) * 5 % WORDS
                yield {"input": ids[:, :-1].contiguous(), "positions": positions}, ids[:, 1:].contiguous()

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """Has no state that a checkpoint would keep."""

    model = config.model_spec.model
    model.layers = model.layers[:layers]
    for layer in model.layers:
        if layer.moe is not None:
            layer.moe.routed_experts.inner_experts.hidden_dim = 32
            layer.moe.load_balance_coeff = None  # counts tokens twice if eager, once if compiled, and halves both
    config.tokenizer, config.dataloader = NoTokenizer.Config(), Walks.Config()
    training = config.training
    training.local_batch_size, training.seq_len = 2, 16
    training.disable_cuda_graphs, training.mixed_precision_param = True, "float32"
    config.debug.seed, config.debug.enable_structured_logging = 0, False
    return config
