# SPDX-License-Identifier: Apache-2.0
"""docs/manifest.md runs as shown, and prints what it shows."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import torch

from farskip_compile import Manifest

PAGE = Path(__file__).parents[2] / "docs" / "manifest.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_example_runs_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").mkdir()
    names: dict[str, object] = {}
    printed = io.StringIO()
    for code in blocks("python"):
        torch.compiler.reset()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(PAGE), "exec"), names)
    assert printed.getvalue() in blocks("")
    assert printed.getvalue().strip()
    (shown,) = blocks("json")
    # all but the versions
    assert shown.splitlines()[:-2] == Path("checkpoint/farskip.json").read_text(encoding="utf-8").splitlines()[:-2]
    assert Manifest.from_json(json.loads(shown)).digest == names["manifest"].digest
