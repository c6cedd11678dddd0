"""docs/compat.json, and the table in docs/compat.md.

Contract: outcomes of this run replace those of the same name, others stay with the date that they have; rows stand in
the order of the environments, and an environment that nobody has tried has a row that says so. In the page only what
stands between the two markers is written, and both must be there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.compat.environments import Environment
from tests.compat.outcome import MISSING, NEVER, PASSED, UNAVAILABLE, Outcome

BEGIN = "<!-- compat: written by `make compat` -->"
END = "<!-- compat: end -->"
HEAD = ("environment", "torch", "transformers", "core tests", "seconds", "date")


def merge(environments: Sequence[Environment], old: Iterable[Outcome], new: Iterable[Outcome]) -> list[Outcome]:
    """A row for each environment: of this run, else of an earlier one, else an empty one."""
    known = {one.name: one for one in (*old, *new)}
    return [known.get(one.name, Outcome(one.name, NEVER, "")) for one in environments]


def load(path: Path) -> list[Outcome]:
    """The outcomes that were written last; none if there is no such file."""
    return [Outcome.from_json(row) for row in json.loads(path.read_text())] if path.exists() else []


def save(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write the outcomes."""
    path.write_text(json.dumps([one.to_json() for one in outcomes], indent=1) + "\n")


def cells(one: Outcome) -> tuple[str, ...]:
    """A row of the table."""
    return (
        one.name,
        one.versions.get("torch", "-"),
        one.versions.get("transformers", "-"),
        result(one),
        f"{one.seconds:.0f}" if one.seconds else "-",
        one.date or "-",
    )


def result(one: Outcome) -> str:
    """What came of it, in words."""
    if one.status == PASSED:
        skipped = f", {one.skipped} skipped" if one.skipped else ""
        excused = f", {len(one.excused)} fail for a defect of this torch [1]" if one.excused else ""
        return f"{one.passed} passed{skipped}{excused}"
    if one.status == MISSING:
        names = ", ".join(f"`{name.split(' (')[0]}`" for name in one.failures)
        return f"{MISSING}: {names}"
    if one.failed:
        return f"**{one.failed} failed**, {one.passed} passed"
    if one.status == UNAVAILABLE:
        return UNAVAILABLE
    return one.status + (f": {one.reason}" if one.reason else "")


def table(outcomes: Iterable[Outcome]) -> str:
    """The table in Markdown, and under it what is excused in it, if anything."""
    outcomes = list(outcomes)
    rows = [HEAD, ("---",) * len(HEAD), *map(cells, outcomes)]
    notes = sorted({what for one in outcomes if one.status == PASSED for what in one.defects})
    note = f"\n\n[1] {'; '.join(notes)}." if notes else ""
    return _lines(rows) + note


def _lines(rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in rows)


def with_table(text: str, outcomes: Iterable[Outcome]) -> str:
    """`text` with the table between the markers.

    Raises:
        ValueError: there is not exactly one pair of markers.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the page needs one line {BEGIN!r}, and one line {END!r} behind it")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(outcomes)}\n{END}{rest.split(END)[1]}"
