# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed on two ranks: ZeRO-0 to 2 and its MoE layer are rewired, ZeRO-3 is refused, and nothing runs as written."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import farskip_compile
from farskip_compile.errors import PartialModelError
from farskip_compile.verify.graph_break_hints import known_break
from tests.distributed.ranks import run_ranks
from tests.handwritten.decoder import MLP, WIDTH, Decoder, farskip_form, token_ids
from tests.integrations.qwen2_moe import qwen2, qwen2_form
from tests.programs import run_program

ROOT = Path(__file__).parents[3]
EAGER = {"inner": "eager"}
STEPS = 4


def tokens(rank: int) -> torch.Tensor:
    return torch.randint(0, 64, (2, 6), generator=torch.Generator().manual_seed(rank))


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    return logits.square().mean()


def engine_of(model: nn.Module, stage: int) -> Any:
    """As a user makes it; plain SGD, whose steps don't blow up what rounding differs in."""
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "timers": {"throughput": {"enabled": False}},
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return deepspeed.initialize(model=model, config=config, optimizer=optimizer)[0]


def losses_by_hand(rank: int, world_size: int) -> list[float]:
    """Plain data parallelism around the form by hand."""
    model, found = qwen2(torch.float32), []
    for _ in range(STEPS):
        model.zero_grad()
        loss = loss_of(qwen2_form(model, tokens(rank)))
        loss.backward()
        found.append(loss.item())
        with torch.no_grad():
            for value in model.parameters():
                if value.grad is not None:
                    dist.all_reduce(value.grad)
                    value -= 0.1 * value.grad / world_size
    return found


def train(engine: Any, rank: int) -> list[float]:
    found = []
    for _ in range(STEPS):
        loss = loss_of(engine(tokens(rank)).logits)
        engine.backward(loss)
        engine.step()
        found.append(loss.item())
    return found


def on_a_rank(rank: int, world_size: int) -> dict[str, Any]:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), DS_ACCELERATOR="cpu")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    import deepspeed

    deepspeed.init_distributed("gloo")
    found: dict[str, Any] = {"by hand": losses_by_hand(rank, world_size)}
    for stage in (0, 1, 2):
        torch.compiler.reset()
        model = qwen2(torch.float32)
        if stage == 2:  # compiled before
            model.compile(backend="farskip", fullgraph=True, options=EAGER)
        engine = engine_of(model, stage)
        if stage != 2:
            engine.compile(backend="farskip", compile_kwargs={"fullgraph": True, "options": EAGER})
        found[f"stage {stage}"] = train(engine, rank)
        found[f"left out {stage}"] = farskip_compile.reports().compiles[-1].left_out["attention.1"]
    engine = engine_of(qwen2(torch.float32), 3)
    engine.compile(backend="farskip", compile_kwargs={"options": EAGER})
    for attempt in (1, 2):
        try:
            train(engine, rank)
        except PartialModelError as error:
            found[f"stage 3, {attempt}"] = str(error)
    torch.compiler.reset()
    engine.module.compile(backend="farskip", fullgraph=True, options=EAGER)
    try:
        train(engine, rank)
    except torch._dynamo.exc.Unsupported as error:
        found["stage 3, fullgraph"] = str(error)
    found["MoE"] = deepspeed_experts(world_size)
    return found


def deepspeed_experts(experts_parallel: int) -> tuple[bool, bool, list[tuple[str, ...]]]:
    """Whether DeepSpeed's layer in a decoder equals its form by hand; whether that is another function; collectives."""
    from deepspeed.moe.layer import MoE

    settings = {"num_experts": 4, "ep_size": experts_parallel, "k": 1, "drop_tokens": False, "use_rts": False}

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.moe = MoE(WIDTH, expert=MLP(), **settings)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.moe(x)[0]

        def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self(x), None

    torch.manual_seed(0)
    model = Decoder(Layer, layers=2)
    for module in model.modules():
        if isinstance(module, MoE):
            module.set_deepspeed_parallelism()
    torch.compiler.reset()
    with torch.no_grad():
        ours = torch.compile(model, backend="farskip", fullgraph=True, options=EAGER)(token_ids())
        report = farskip_compile.reports().compiles[-1]
        rows = [report.table.collectives(row) for row in report.rows if row.name.startswith("moe")]
        equal = torch.equal(ours, farskip_form(model, token_ids()))
        return equal, not torch.equal(ours, model(token_ids())), rows


def test_two_ranks() -> None:
    for found in run_ranks(on_a_rank, 2, timeout=400.0):
        for stage in (0, 1, 2):
            assert found[f"stage {stage}"] == pytest.approx(found["by hand"], rel=1e-5), stage
            assert found[f"left out {stage}"] == ("r0",)
        for attempt in (1, 2):
            assert "ZeRO-3 gathers" in found[f"stage 3, {attempt}"]
            assert "ZeRO-1 or ZeRO-2" in found[f"stage 3, {attempt}"]
        assert "deepspeed" in found["stage 3, fullgraph"]
        equal, another, rows = found["MoE"]
        assert equal
        assert another, "as written it is another function"
        assert all(any("all_to_all" in name for name in row) for row in rows), rows


def test_the_page_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/integrations/deepspeed.md").read_text(), re.S)
    (tmp_path / "train.py").write_text(program)
    done = run_program(["train.py"], tmp_path, timeout=400, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rewired 3 of 4 sub-blocks (2 layers, 2 MoE): standard -> full, verified" in done.stdout
    assert "'attention.1': ('r0',)" in done.stdout


def test_where_it_breaks_is_known() -> None:
    error = known_break("skipped (/lib/deepspeed/runtime/zero/parameter_offload.py:306: self.reset_step())")
    assert error is not None
    assert "FSDP2" in error.way_out
