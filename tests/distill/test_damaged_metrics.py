# SPDX-License-Identifier: Apache-2.0
"""Damaged metrics: the lines as they were written, or an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.base.json_files import sealed
from farskip_compile.errors import DistillationError
from farskip_compile.healing.distill import DistillConfig
from farskip_compile.healing.distill.records import Records
from tests.distill.damage import QUICK, changed, result_of
from tests.test_json_files import not_a_file

METRICS = [{"step": step, "loss": 1.0 / step} for step in (1, 2, 3)]


def reported(folder: Path, step: int) -> str:
    Records(DistillConfig(output=folder, progress=False), step, first=True).close()
    return (folder / "metrics.jsonl").read_text()


@QUICK
@given(data=st.data())
def test_changed_metrics(tmp_path: Path, data: st.DataObject) -> None:
    path, lines = tmp_path / "metrics.jsonl", [sealed(one) + "\n" for one in METRICS]
    path.write_text("".join(lines))
    whole = len("".join(lines[:2]))
    changed(data.draw, whole, is_text=True)(path)
    before = path.read_bytes()
    found = result_of(lambda: reported(tmp_path, 2))
    if isinstance(found, DistillationError):
        assert "move" in found.way_out
        assert path.read_bytes() == before
    else:  # a line that was cut off when the process was killed
        assert len(before) < whole
        assert found == "".join(lines[: before.count(b"\n")])


def test_metrics_of_steps_that_are_taken_again(tmp_path: Path) -> None:
    text = "".join(sealed(one) + "\n" for one in METRICS)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert reported(tmp_path, 2) == "".join(text.splitlines(keepends=True)[:2])
    assert reported(tmp_path, 0) == ""


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "too large", "nested"])
def test_metrics_that_are_none(tmp_path: Path, kind: str) -> None:
    not_a_file(tmp_path / "metrics.jsonl", kind)
    if kind == "nested":
        (tmp_path / "metrics.jsonl").write_text("[" * 10**5 + "\n")
    with pytest.raises(DistillationError, match="can't read line 1"):
        reported(tmp_path, 2)
