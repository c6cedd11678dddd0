# SPDX-License-Identifier: Apache-2.0
"""Profiles that others wrote or damaged: a profile or a `ConfigError`, soon; and figures that costs can be made of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farskip_compile.costs import HardwareProfile, collective_seconds, load_profile
from farskip_compile.costs.profile import COLLECTIVE_KINDS
from farskip_compile.errors import ConfigError
from farskip_compile.text_utils import UNPRINTABLE
from tests.reading.malformed import bounded, damaged, mutated, text

CURVE = {"axes": [[1.0, 2.0]] * 3, "values": [1.0] * 8}
VALID: dict[str, Any] = {
    **load_profile("mi300x").to_json(),
    "curves": {"matmul": {"float32": CURVE}, "memory": {"axes": [[1.0]], "values": [1.0]}},
}
_KEPT = {path: source for path, source in VALID["sources"].items() if not path.startswith("curves")}
VALID["sources"] = {**_KEPT, "curves": "a book", "intra_node.correction": "a book"}
VALID["intra_node"] = {
    **VALID["intra_node"],
    "correction": {"all_reduce": {"axes": [[2.0], [1.0, 9.0]], "values": [1.0, 2.0]}},
}


def outcome(content: bytes, folder: Path) -> None:
    path = folder / "profile.json"
    path.write_bytes(content)
    found = bounded(lambda: load_profile(path))
    assert isinstance(found, HardwareProfile | ConfigError)
    if isinstance(found, ConfigError):
        assert not UNPRINTABLE.search(str(found))
        assert len(str(found)) < 2500
        return
    for kind in COLLECTIVE_KINDS:
        assert math.isfinite(collective_seconds(kind, 10**9, 16, found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


def test_the_valid_one_is_valid(folder: Path) -> None:
    HardwareProfile.from_json(VALID)


@settings(max_examples=150)
@given(st.data())
def test_any_profile_is_one_or_is_refused(folder: Path, data: st.DataObject) -> None:
    outcome(text(data.draw(mutated(VALID))), folder)


@settings(max_examples=50)
@given(st.data())
def test_any_damage_is_noticed_or_changes_nothing(folder: Path, data: st.DataObject) -> None:
    outcome(data.draw(damaged(text(VALID))), folder)
