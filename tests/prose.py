# SPDX-License-Identifier: Apache-2.0
"""English with code in it, about 21,000 characters, for tests of tokenizers, text loaders, folds and healing.

Contract: `PROSE` never changes, so that what these tests train on does not depend on what the documentation says today.
It is a README of November 2026.
"""

from __future__ import annotations

from pathlib import Path

PROSE = (Path(__file__).parent / "prose.md").read_text(encoding="utf-8")
