# SPDX-License-Identifier: Apache-2.0
"""docs/conversion.md is true: its files and commands run as they stand, in their order, on a folder of their own."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.programs import run_program

pytest.importorskip("transformers")
pytest.importorskip("datasets")
pytest.importorskip("lm_eval")

PAGE = (Path(__file__).parent.parent.parent / "docs" / "conversion.md").read_text()
BLOCKS = dict(re.findall(r"^```\w+\n# (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = re.findall(r"^    ((?:python|farskip) .*)$", PAGE, re.MULTILINE)


def test_the_page_runs(tmp_path: Path) -> None:
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(text)
    assert [command.split()[0:2] for command in COMMANDS] == [
        ["python", "make_checkpoint.py"],
        ["farskip", "explain"],
        ["python", "choose.py"],
        ["farskip", "heal"],
        ["python", "use.py"],
        ["farskip", "evaluate"],
        ["farskip", "heal"],
    ]
    farskip = str(Path(sys.executable).parent / "farskip")
    said = {}
    for command in COMMANDS:
        program, *arguments = command.split()
        file = [farskip] if program == "farskip" else []
        done = run_program([*file, *arguments], tmp_path, 400, OMP_NUM_THREADS="1", COLUMNS="100")
        assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
        said[command] = done.stdout
    shown, chosen, healed = (said[command] for command in COMMANDS[1:4])
    assert "moe.2" in shown
    (mark,) = [line for line in chosen.splitlines() if line.startswith(">")]
    manifest = json.loads((tmp_path / "plan.json").read_text())
    rows = [row["name"] for row in manifest["sub_blocks"] if row["left_out"]]
    assert 0 < len(rows) < 4
    assert int(mark.split("%")[1].split()[-1]) >= 80
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "rewired" in healed
    written = json.loads((tmp_path / "healed" / "model" / "config.json").read_text())["farskip"]
    assert written["connectivity"] == manifest["connectivity"]
    lines = [json.loads(line) for line in (tmp_path / "healed" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(41))
    assert min(line["held_out_kl"] for line in lines[1:] if "held_out_kl" in line) < lines[0]["held_out_kl"]
    assert said[COMMANDS[4]].startswith("The standard library")
    scores = said[COMMANDS[5]]
    assert re.search(r"bits_per_byte +\d\.\d{4} ±\d\.\d{4} +\d\.\d{4} ±\d\.\d{4} +[+-]\d\.\d{4} ±.* 0\.2x  ok", scores)
    assert "original: as it is written" in scores
    assert f"healed: rewired, {len(rows)} sub-block" in scores
    page = said[COMMANDS[6]]
    assert re.search(r"^original +\d+\.\d{4} .* 0\.0000 +100\.0% *$", page, re.MULTILINE)
    assert re.search(r"^healed +\d+\.\d{4} .*%.*%.*±", page, re.MULTILINE)
    assert (tmp_path / "healed-at-once" / "model" / "farskip.json").exists()
