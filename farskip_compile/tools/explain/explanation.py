# SPDX-License-Identifier: Apache-2.0
"""What `explain` finds in a model: plain records.

Contract: an `Explanation` holds the report of one capture, or a `RefusedModel` that says why there is none. Nothing
here captures anything. Its text is what the command `farskip explain` prints, in 80 columns and without colours.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.records.compile import CompileReport
from farskip_compile.tools.explain.overlappable import independent
from farskip_compile.tools.explain.refusal import RefusedModel
from farskip_compile.tools.explain.text import explanation, plain


@dataclass(frozen=True)
class Explanation:
    """What was found in a model, and what the backend makes of it."""

    model: str
    """Name of its class, or of the function."""
    config: FarSkipConfig
    """What it was asked to be compiled with."""
    report: CompileReport | None
    """Rows before and after; the model as written if the rewiring is refused; None if no table could be read."""
    refusal: RefusedModel | None = None
    """Why it can't be rewired as asked; None: it can."""

    def __str__(self) -> str:
        return plain(lambda console: explanation(self, console))

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        report = self.report.to_json() if self.report is not None else None
        if self.report is not None and report is not None:
            for when, table in (("before", self.report.table.as_written()), ("after", self.report.table)):
                for row, plain in zip(table.rows, report["sub_blocks"], strict=True):
                    plain[f"independent_{when}"] = list(independent(table, row))
        config = self.config.to_json()
        return {
            "model": self.model,
            "connectivity": config["connectivity"],
            "layers": config["layers"],
            "refusal": self.refusal.to_json() if self.refusal is not None else None,
            "report": report,
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Versions of everything that decides what a model's graph looks like."""
    found = {"python": platform.python_version()}
    for package in ("farskip-compile", "torch", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
