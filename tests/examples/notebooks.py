# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.examples.notebooks [NAME ...]`: run the notebooks of examples/ and compare with what stands in them.

In:    the notebooks, with the outputs of the run that was committed.
Out:   a line for each, and each cell whose output is another one; exit status 1 if there is any. `--write` puts the
       outputs of this run in.
Never: changes a notebook without `--write`.

What is compared, cell by cell: which outputs there are, and each text that a cell prints. Words must be equal; numbers
may differ by the fraction that the notebook's metadata gives as `tolerance`, 0 without it: training rounds otherwise on
other processors. Not compared are stderr, the pixels of pictures, and the texts of cells with the tag `varies`: times,
and choices between rows that are nearly alike.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
NUMBER = re.compile(r"\d+(?:\.\d+)?")
VARIES = "varies"


def rerun(path: Path, timeout: int = 600) -> Any:
    """The notebook with the outputs of a run in its folder; `nbclient`'s error if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":  # progress and announcements are for who runs it
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return notebook


def differences(kept: Any, found: Any) -> Iterator[str]:
    """What of `found` is not what stands in `kept`, a line for each cell."""
    tolerance = kept.metadata.get("tolerance", 0.0)
    for number, (old, new) in enumerate(zip(kept.cells, found.cells, strict=True)):
        if old.cell_type != "code":
            continue
        before, after = texts(old), texts(new)
        if [kind for kind, _ in before] != [kind for kind, _ in after]:
            yield f"cell {number}: {[kind for kind, _ in after]}, not {[kind for kind, _ in before]}"
        elif VARIES in old.metadata.get("tags", ()):
            continue
        elif not all(alike(one, other, tolerance) for (_, one), (_, other) in zip(before, after, strict=True)):
            yield f"cell {number}:\n{shown(after)}\nnot\n{shown(before)}"


def texts(cell: Any) -> list[tuple[str, str]]:
    """Kind and text of each output but stderr; pictures have none."""
    found: list[tuple[str, str]] = []
    for output in cell.outputs:
        if output.output_type == "stream":
            if output.name == "stdout":
                found.append(("stdout", output.text))
        elif "image/png" in output.data:
            found.append(("picture", ""))
        else:
            found.append((output.output_type, output.data.get("text/plain", "")))
    return found


def alike(one: str, other: str, tolerance: float) -> bool:
    """Whether two texts have the same words, and numbers that are as near as `tolerance` says."""
    if NUMBER.sub("0", " ".join(one.split())) != NUMBER.sub("0", " ".join(other.split())):
        return False
    pairs = zip(map(float, NUMBER.findall(one)), map(float, NUMBER.findall(other)), strict=True)
    return all(abs(a - b) <= tolerance * max(a, b) for a, b in pairs)


def shown(outputs: list[tuple[str, str]]) -> str:
    """For a message."""
    return "\n".join(text or f"({kind})" for kind, text in outputs)


def main() -> None:
    """See the module's contract."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="without .ipynb; all if left out")
    parser.add_argument("--write", action="store_true", help="keep the outputs of this run")
    asked = parser.parse_args()
    paths = [path for path in NOTEBOOKS if not asked.names or path.stem in asked.names]
    with ThreadPoolExecutor(2) as pool:
        runs = dict(zip(paths, pool.map(rerun, paths), strict=True))
    differ = False
    for path, found in runs.items():
        if asked.write:
            nbformat.write(found, path)
            continue
        lines = list(differences(nbformat.read(path, as_version=4), found))
        print(f"{path.name}: {'other outputs' if lines else 'the outputs that stand in it'}", *lines, sep="\n")
        differ |= bool(lines)
    sys.exit(differ)


if __name__ == "__main__":
    main()
