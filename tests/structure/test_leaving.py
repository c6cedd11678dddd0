# SPDX-License-Identifier: Apache-2.0
"""A process group is destroyed so that the interpreter can end: see farskip_compile/compiler/ranks/process_group.py."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.structure.sources import ROOT

PROCESS_GROUP = ROOT / "farskip_compile" / "compiler" / "ranks" / "process_group.py"
SENDS_NOTHING = re.compile(r'"fake"|join_fake_ranks|late_link|world_size=1\b')
"""Groups without threads, or of one rank in a process that goes on."""


def programs() -> Iterator[tuple[str, str]]:
    for folder in ("farskip_compile", "passes", "models", "benchmarks", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            if file != PROCESS_GROUP and "structure" not in file.parts:
                yield str(file.relative_to(ROOT)), file.read_text()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            yield str(page.relative_to(ROOT)), block


def test_the_last_thing_that_ranks_do_together_is_a_barrier() -> None:
    seen, bare = 0, []
    for name, text in programs():
        lines = [line for line in text.splitlines() if line.strip()]
        for number, line in enumerate(lines):
            if "destroy_process_group()" in line and not SENDS_NOTHING.search(text):
                seen += 1
                if not any("barrier()" in before for before in lines[max(0, number - 2) : number]):
                    bare.append((name, line.strip()))
    assert bare == []
    assert seen >= 5
