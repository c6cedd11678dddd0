# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.vllm.page`: the table of what the real vLLM has served, printed and written into docs/serving.md.

In:    what the tests in `tests/vllm/real` have left in `.compat/served`, one file for each version of vLLM.
Out:   the table between the two markers of the page; other versions keep the rows that they have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "serving.md"
RESULTS = ROOT / "docs" / "serving.json"
BEGIN, END = "<!-- served: written by `make vllm` -->", "<!-- served: end -->"
HEAD = ("vLLM", "model", "mode", "ranks", "same tokens", "largest difference", "original wiring")


def main() -> None:
    """See the module's contract."""
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for file in sorted((ROOT / ".compat" / "served").glob("*.json")):
        known[file.stem] = json.loads(file.read_text())
    RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    table = rows(known)
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")
    print(table)


def rows(known: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for one in known.values():
        lines += [_cells(one["versions"]["vllm"], row) for row in one["rows"]]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _cells(version: str, row: dict[str, Any]) -> tuple[str, ...]:
    equal, original = (f"{row[name]} of {row['tokens']}" for name in ("equal", "original"))
    original = f"{original}, {row['original_apart']:.1e}"
    return (version, row["case"], row["mode"], str(row["ranks"]), equal, f"{row['apart']:.1e}", original)


if __name__ == "__main__":
    main()
