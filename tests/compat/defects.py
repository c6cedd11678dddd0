# SPDX-License-Identifier: Apache-2.0
"""Defects of a version of PyTorch itself, which tests of ours run into.

Contract: a failure counts as one of these only if its message has the defect's words in it, and if a program without
this package, run in the same environment, fails in the same words. Where that program runs through, the defect is none.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Defect:
    """One defect.

    Args:
        torch: versions that have it, as `2.11`.
        words: of the error.
        what: one sentence for the reader of the table.
        program: shows it, with nothing but PyTorch.
    """

    torch: tuple[str, ...]
    words: str
    what: str
    program: str


DEFECTS = (
    Defect(
        ("2.11", "2.12"),
        "expected scalar type Double but found Float",
        "Inductor on a CPU can not train attention in float64 (plain `torch.compile` fails in the same words)",
        """
import torch
def attend(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum()
inputs = [torch.randn(1, 2, 8, 16, dtype=torch.float64, requires_grad=True) for _ in range(3)]
torch.compile(attend, fullgraph=True)(*inputs).backward()
""",
    ),
)


def confirmed(python: Path, version: str, defects: Iterable[Defect] = DEFECTS) -> list[Defect]:
    """The defects that the torch of this interpreter has.

    Args:
        python: of the environment.
        version: of its torch.
        defects: which to try.
    """
    minor = ".".join(version.split(".")[:2])
    return [one for one in defects if minor in one.torch and _shows(python, one)]


def _shows(python: Path, defect: Defect) -> bool:
    done = subprocess.run([str(python), "-c", defect.program], capture_output=True, text=True, check=False)
    return done.returncode != 0 and defect.words in done.stderr
