# SPDX-License-Identifier: Apache-2.0
"""accelerate with `farskip_plugin`: the training of the form by hand, and what is said where a name alone is given."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import farskip_compile
from farskip_compile.errors import ConfigError, OriginalWiringError
from farskip_compile.integrations.accelerating import farskip_plugin
from tests.guard.tiny import tiny
from tests.integrations.training import LEFT_OUT, RATE, ROWS, assert_equal, by_hand, data, model
from tests.programs import run_program

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "accelerate.md"


def batches() -> Any:
    """Two."""
    rows: Any = data()[: 2 * ROWS]
    return torch.utils.data.DataLoader(rows, batch_size=ROWS)


def trained(**options: Any) -> tuple[Any, Any]:
    """Two steps of one batch each: the prepared model, and the one inside."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, dynamo_plugin=farskip_plugin(inner="eager"), **options)
    inside = tiny().train()
    optimizer = torch.optim.SGD(inside.parameters(), RATE)
    prepared, optimizer, loader = accelerator.prepare(inside, optimizer, batches())
    for batch in loader:
        accelerator.backward(prepared(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    return prepared, inside


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_trains_as_the_form_by_hand(precision: str) -> None:
    farskip_compile.reports().clear()
    prepared, inside = trained(mixed_precision=precision)
    plain = model()
    by_hand(plain, [[batch] for batch in batches()], autocast=precision == "bf16")
    assert_equal(inside, plain)
    assert [report.left_out for report in farskip_compile.reports().compiles] == [LEFT_OUT]
    with pytest.raises(OriginalWiringError, match="runs the model in its original wiring"):
        prepared.generate(data()[0]["input_ids"][None], max_new_tokens=1)


def test_wrong_options_are_refused_before_anything_is_prepared() -> None:
    with pytest.raises(ConfigError, match="connectivty"):
        farskip_plugin(connectivty="full")


def test_a_plugin_that_accelerate_would_not_look_at() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True, dynamo_plugin=farskip_plugin(inner="eager"))
    Accelerator(cpu=True, dynamo_plugin=farskip_plugin(inner="eager"))  # the same: what is shared is what is asked for
    with pytest.raises(ConfigError, match="takes no plugin from a later one"):
        farskip_plugin(inner="eager", connectivity="attention")
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True)
    with pytest.raises(ConfigError, match="takes no plugin from a later one"):
        farskip_plugin()


def test_the_way_by_name_is_an_error_of_accelerates() -> None:
    """docs/integrations/accelerate.md quotes both."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="'FARSKIP' is not a valid DynamoBackend"):
        Accelerator(cpu=True, dynamo_backend="farskip")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--dynamo_backend", "farskip", "train.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "argument --dynamo_backend/--dynamo-backend: invalid choice: 'farskip' (choose from" in done.stderr


def test_the_page_runs(tmp_path: Path) -> None:
    """By accelerate's launcher; the other two ways of the page are those of the tests above and of `test_ranks`."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "train.py").write_text(program)
    done = run_program(["-m", "accelerate.commands.launch", "--cpu", "train.py"], tmp_path, 300, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "rewired 5 of 6 sub-blocks (3 layers, 3 MoE): standard -> full, verified",
        "  moe.0 leaves out a0",
        "  attention.1 leaves out r0",
        "  moe.1 leaves out a1",
        "  attention.2 leaves out r1",
        "  moe.2 leaves out a2",
        "full",
    ]
