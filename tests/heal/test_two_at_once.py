# SPDX-License-Identifier: Apache-2.0
"""Two runs that write into one folder: the second one is told so before it has loaded anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from farskip_compile.base.writing.locks import Busy
from farskip_compile.errors import ConfigError
from farskip_compile.healing.distill import self_distill
from farskip_compile.healing.fold import fold
from farskip_compile.healing.heal.main import Talk, heal
from farskip_compile.healing.heal.settings import HealSettings
from farskip_compile.models import build

IDS = torch.arange(8).view(1, 8)


def busy(*_: Any, **__: Any) -> None:
    raise Busy


def heals(out: Path) -> None:
    (out / "steps").mkdir()
    heal(HealSettings(checkpoint=out / "nowhere", data=(out / "nowhere.txt",), out=out), Talk())


def distills(out: Path) -> None:
    model = build("mixtral", vocab_size=16, hidden_size=32, layers=("moe", "moe"))
    self_distill(model, [IDS], held_out=[IDS], steps=1, learning_rate=1e-3, output=out)


def folds(out: Path) -> None:
    model = build("mixtral", vocab_size=16, hidden_size=32, layers=("moe", "moe"))
    fold(model, [IDS], held_out=[IDS], folder=out)


@pytest.mark.parametrize("run", [heals, distills, folds])
def test_the_reason_is_the_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[[Path], None]
) -> None:
    """Before, both wrote, and one of them failed later because a file was not what it had written."""
    monkeypatch.setattr("farskip_compile.base.writing.locks.hold", busy)
    (tmp_path / ".farskip-lock").write_text("process 4711 on node1\n")
    with pytest.raises(ConfigError, match=r"another run writes into .* at this moment: process 4711 on node1") as error:
        run(tmp_path)
    assert "wait until it has ended" in error.value.way_out
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [".farskip-lock"]
