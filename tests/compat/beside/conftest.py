# SPDX-License-Identifier: Apache-2.0
"""Packages in versions that this package does not work with: tests for environments that `make compat` builds."""

from __future__ import annotations

from importlib.metadata import version

try:
    has_transformers_4 = version("transformers").startswith("4.")
except ModuleNotFoundError:
    has_transformers_4 = False
collect_ignore = [] if has_transformers_4 else ["test_transformers_4.py"]
