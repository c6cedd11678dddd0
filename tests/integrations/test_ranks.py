# SPDX-License-Identifier: Apache-2.0
"""Two ranks, each with batches of its own: DDP as the Trainer and as accelerate put it around the model.

The oracle is the form by hand on the batches of both ranks, whose losses have the same number of tokens.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import Trainer

import farskip_compile
from farskip_compile.errors import DDPSplitError
from farskip_compile.integrations.accelerating import farskip_plugin
from farskip_compile.integrations.trainer import FarSkipCallback
from tests.distributed.ranks import run_ranks
from tests.guard.tiny import tiny
from tests.integrations.training import LEFT_OUT, RATE, ROWS, Recorder, arguments, assert_equal, by_hand, data, model


def trainer_on(folder: Path, collator: Any, callback: FarSkipCallback) -> Any:
    args = arguments(folder, ddp_backend="gloo", max_steps=1, save_strategy="steps", save_steps=1)
    return Trainer(model(), args, data_collator=collator, train_dataset=data(), callbacks=[callback])


def on_rank(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    place = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as other:
        try:
            trainer_on(Path(other), None, FarSkipCallback(inner="eager")).train()
        except DDPSplitError as error:
            found["split"] = error.way_out
    torch._dynamo.config.optimize_ddp = False
    collator, callback = Recorder(), FarSkipCallback(inner="eager")
    trainer = trainer_on(Path(folder), collator, callback)
    trainer.train()
    found |= {"wrapper": type(trainer.model_wrapped).__name__, "left_out": [one.left_out for one in callback.reports]}
    found |= {"batches": collator.batches, "weights": trainer.model.state_dict()}

    AcceleratorState._reset_state()  # the Trainer's, which all accelerators share
    farskip_compile.reports().clear()
    accelerator = Accelerator(cpu=True, dynamo_plugin=farskip_plugin(inner="eager"))
    inside = tiny().train()
    prepared, optimizer = accelerator.prepare(inside, torch.optim.SGD(inside.parameters(), RATE))
    rows = data()[rank * ROWS : (rank + 1) * ROWS]
    accelerator.backward(prepared(**Recorder()(rows)).loss)
    optimizer.step()
    found |= {"plugin": [report.left_out for report in farskip_compile.reports().compiles]}
    found |= {"plugin's weights": inside.state_dict()}
    return found


def test_gradients_are_averaged(tmp_path: Path) -> None:
    first, second = run_ranks(on_rank, 2, str(tmp_path), timeout=300)
    plain, found = model(), model()
    by_hand(plain, [[first["batches"][0], second["batches"][0]]])
    by_plugin = model()
    by_hand(by_plugin, [[Recorder()(data()[:ROWS]), Recorder()(data()[ROWS : 2 * ROWS])]])
    for rank in (first, second):
        assert "optimize_ddp = False" in rank["split"]
        assert rank["wrapper"] == "DistributedDataParallel"
        assert rank["left_out"] == rank["plugin"] == [LEFT_OUT]
        found.load_state_dict(rank["weights"])
        assert_equal(found, plain)
        found.load_state_dict(rank["plugin's weights"])
        assert_equal(found, by_plugin)
    assert farskip_compile.load_manifest(tmp_path / "checkpoint-1").connectivity == "full"
