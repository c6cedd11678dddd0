"""A fixed quarter of the zoo: no family may be worse than docs/zoo.json says; and how the table is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from farskip_compile.cli import app
from farskip_compile.cli_zoo import regressions
from farskip_compile.zoo.run import Entry, check_family
from farskip_compile.zoo.table import counts, page, summary

pytest.importorskip("transformers")
from farskip_compile.zoo.families import moe_families

RECORDED = json.loads((Path(__file__).parents[2] / "docs" / "zoo.json").read_text())
QUARTER = [family for family in moe_families() if family.model_type in {e["family"] for e in RECORDED[1::4]}]


@pytest.mark.parametrize("family", QUARTER, ids=lambda family: family.model_type)
def test_no_family_stops_working(family) -> None:
    entry = check_family(family)
    assert regressions([entry], RECORDED) == []
    recorded = next(old for old in RECORDED if old["family"] == entry.family)
    if entry.status == recorded["status"] == "rewired":
        assert entry.layers  # what was found, not only that something was
        assert entry.verdicts["none"] == "equal"


def test_nothing_recorded_is_wrong() -> None:
    entries = [Entry.from_json(old) for old in RECORDED]
    assert not {"WRONG", "unchecked", "not built"} & counts(entries).keys()
    assert counts(entries)["rewired"] >= 48
    for entry in entries:
        if entry.status in ("refused", "not captured"):
            assert entry.reason
            assert ".py:" in entry.where  # the line in the way


def test_the_page_is_the_recorded_table() -> None:
    entries = [Entry.from_json(old) for old in RECORDED]
    text = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text()
    assert summary(entries) in text
    for line in page(entries).splitlines():
        if line.startswith(("| ", "- **")):
            assert line in text


def entry(**changes: object) -> Entry:
    right = {"none": "equal", "full": "equal", "attention": "equal", "mlp": "equal"}
    return Entry(**{"family": "f", "class_name": "F", "captured": True, "verdicts": right, **changes})  # type: ignore[arg-type]


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
    assert Entry.from_json(json.loads(json.dumps(entry(**changes).to_json()))) == entry(**changes)


def test_regressions() -> None:
    recorded = [entry().to_json()]
    assert regressions([entry()], recorded) == []
    assert regressions([entry(family="new", captured=False)], recorded) == []
    assert "was 'rewired' and is 'not captured'" in regressions([entry(captured=False)], recorded)[0]
    better = [entry(captured=False).to_json()]
    assert regressions([entry()], better) == []


def test_command(tmp_path: Path) -> None:
    run = CliRunner().invoke
    result = run(app, ["zoo", "mixtral", "--page", str(tmp_path / "zoo.md"), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["families"][0]["status"] == "rewired"
    assert "| mixtral | rewired |" in (tmp_path / "zoo.md").read_text()
    broken = json.loads((tmp_path / "zoo.json").read_text())
    assert broken[0]["family"] == "mixtral"
    assert "mixtral" in run(app, ["zoo", "--list"]).stdout.splitlines()
    assert run(app, ["zoo", "no_such_family"]).exit_code == 2
