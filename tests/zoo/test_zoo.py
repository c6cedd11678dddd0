# SPDX-License-Identifier: Apache-2.0
"""A fixed quarter of the zoo (with each change: half of it) is not worse than docs/zoo.json; how the table is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from farskip_compile.base.json_files import JsonReader
from farskip_compile.cli import app
from farskip_compile.cli.families import regressions
from farskip_compile.tools.zoo.run import ZooEntry, check_family
from farskip_compile.tools.zoo.table import counts, page, summary

pytest.importorskip("transformers")
from farskip_compile.tools.zoo.families import moe_families

RECORDED = json.loads((Path(__file__).parents[2] / "docs" / "zoo.json").read_text())
FAMILIES = {family.model_type: family for family in moe_families()}

QUARTER = {
    "beam": "a m, 3 (a r)",  # norms in front of and behind each sub-block, both sides scaled
    "cohere2_moe": "a m, 3 (a r s)",  # parallel blocks
    "deepseek_v32": "a m, 3 (a r s)",  # sparse attention, whose indexer selects
    "doge": "4 (a r s)",  # experts in embedding tables, scaling by vectors
    "gemma4_text": "4 (a r m)",  # a router that reads the residual, sums scaled in place, inputs of each layer
    "gpt_oss": "4 (a r)",  # biases of experts, sinks of attention
    "granitemoehybrid": "x r s, a r s, x r s, a r s",  # state space and attention, multipliers
    "hy_v4": "a m, 3 (a r)",  # four streams that are only added to
    "jetmoe": "4 (a r)",  # routed attention
    "lfm2_moe": "a m, x r, a r, x r",  # short convolutions
    "llama4_text": "a m, a s r, a m, a s r",  # every second layer, routed output added in place
    "longcat_flash": "a m, a m r, a m, a m r, a m, a m r, a m, a m r",  # shortcut experts, some of them identities
    "minimax": "",  # the skip connection begins behind the norm: refused
    "nemotron_h": "x r s, a m, x r s",  # one sub-block a layer, experts in a latent space
    "qwen3_next": "3 (x r s), a r s",  # linear attention, gated shared experts
    "zaya": "4 (a r)",  # vectors added to the stream, state between routers
}
"""What each layer adds, by the source of the models."""


@pytest.mark.parametrize("name", QUARTER)
def test_no_family_stops_working(name: str) -> None:
    entry = check_family(FAMILIES[name])
    assert regressions([entry], RECORDED) == []
    assert entry.layers == QUARTER[name]


def recorded(found: dict[str, Any]) -> ZooEntry:
    """The entry that was written as `found`."""
    fields = {key: value for key, value in found.items() if key != "status"}
    return JsonReader("zoo.json").decode(ZooEntry, fields)


def test_nothing_recorded_is_wrong() -> None:
    entries = [recorded(old) for old in RECORDED]
    assert not {"WRONG", "unchecked", "not built"} & counts(entries).keys()
    assert counts(entries)["rewired"] >= 48
    for entry in entries:
        if entry.status in ("refused", "not captured"):
            assert entry.reason
            assert ".py:" in entry.where  # the line in the way


def test_the_page_is_the_recorded_table() -> None:
    entries = [recorded(old) for old in RECORDED]
    text = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text()
    assert summary(entries) in text
    for line in page(entries).splitlines():
        if line.startswith(("| ", "- **")):
            assert line in text


def entry(**changes: object) -> ZooEntry:
    right = {"none": "equal", "full": "equal", "attention": "equal", "mlp": "equal"}
    return ZooEntry(**{"family": "f", "class_name": "F", "captured": True, "verdicts": right, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "rewired"),
        ({"built": False}, "not built"),
        ({"captured": False}, "not captured"),
        ({"verdicts": {"none": "WRONG", "full": "equal"}}, "WRONG"),
        ({"verdicts": {"none": "equal", "full": "equal", "mlp": "WRONG"}}, "WRONG"),
        ({"verdicts": {"none": "equal", "full": "unchecked"}}, "unchecked"),
        ({"verdicts": {"none": "equal", "full": "refused", "mlp": "equal"}}, "rewired in part"),
        ({"verdicts": {"none": "equal", "full": "equal within rounding"}}, "rewired"),
        ({"verdicts": {"none": "equal", "full": "nothing to change"}}, "recognised"),
        ({"verdicts": {"none": "refused", "full": "refused"}}, "refused"),
    ],
)
def test_status(changes: dict[str, object], status: str) -> None:
    assert entry(**changes).status == status
    assert recorded(json.loads(json.dumps(entry(**changes).to_json()))) == entry(**changes)


def test_regressions() -> None:
    recorded = [entry().to_json()]
    assert regressions([entry()], recorded) == []
    assert regressions([entry(family="new", captured=False)], recorded) == []
    assert "was 'rewired' and is 'not captured'" in regressions([entry(captured=False)], recorded)[0]
    better = [entry(captured=False).to_json()]
    assert regressions([entry()], better) == []


def test_command(tmp_path: Path) -> None:
    run = CliRunner().invoke
    result = run(app, ["check", "families", "mixtral", "--page", str(tmp_path / "zoo.md"), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["families"][0]["status"] == "rewired"
    assert "| mixtral | rewired |" in (tmp_path / "zoo.md").read_text()
    broken = json.loads((tmp_path / "zoo.json").read_text())
    assert broken[0]["family"] == "mixtral"
    assert "mixtral" in run(app, ["check", "families", "--list"]).stdout.splitlines()
    assert run(app, ["check", "families", "no_such_family"]).exit_code == 2
