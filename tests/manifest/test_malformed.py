# SPDX-License-Identifier: Apache-2.0
"""Manifests that others wrote or damaged: a manifest or a `ManifestError`, soon, whatever is in the file."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farskip_compile import Manifest, describe, load_manifest, save_manifest
from farskip_compile.errors import ManifestError
from farskip_compile.manifest import from_amd_keys
from farskip_compile.manifest.check import check_as_written
from farskip_compile.manifest.fingerprint import ParameterFingerprint
from farskip_compile.manifest.graph_parameters import GraphParameters
from farskip_compile.manifest.json_text import compact
from farskip_compile.passes.residual.table import Table
from farskip_compile.text_utils import UNPRINTABLE
from tests.manifest.sample import IDS, small
from tests.reading.malformed import EVIL, bounded, damaged, mutated, text

EMPTY: dict[str, Any] = {
    "schema": 1, "connectivity": "full", "layers": None, "terms": [], "sub_blocks": [], "fingerprint": None,
    "versions": {},
}  # fmt: skip


@functools.cache
def valid() -> dict[str, Any]:
    return describe(small(), IDS).to_json()


def outcome(content: bytes, folder: Path, name: str = "farskip.json") -> Manifest | ManifestError:
    (folder / name).write_bytes(content)
    found = bounded(lambda: load_manifest(folder))
    assert isinstance(found, Manifest | ManifestError)
    if isinstance(found, ManifestError):
        assert found.way_out
        assert not UNPRINTABLE.search(str(found))
        assert len(str(found)) < 2000
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manifests")


@settings(max_examples=100)
@given(st.data())
def test_any_manifest_is_one_or_is_refused(folder: Path, data: st.DataObject) -> None:
    found = outcome(text(data.draw(mutated(valid()))), folder)
    if isinstance(found, Manifest):
        assert Manifest.from_json(found.to_json()) == found


@settings(max_examples=60)
@given(st.data())
def test_any_damage_is_noticed_or_changes_nothing(folder: Path, data: st.DataObject) -> None:
    outcome(data.draw(damaged(text(valid()))), folder)


AMD = {"farskip": True, "farskip_start_idx": 2, "farskip_end_idx": 10, "num_hidden_layers": 27, "text_config": {}}


@settings(max_examples=60)
@given(st.data())
def test_any_configuration_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("configuration")
    found = outcome(text(data.draw(mutated(AMD))), folder, "config.json")
    if isinstance(found, Manifest) and found.layers is not None:
        assert found.layers[1] <= 10**9


@pytest.mark.parametrize("key", ["farskip_start_idx", "farskip_end_idx"])
def test_a_layer_that_no_model_has(key: str) -> None:
    for value in (10**18, 1e308, float("nan"), float("inf"), 10**400):
        with pytest.raises(ManifestError, match=f"{key}' should be the index of a layer"):
            from_amd_keys({**AMD, key: value})


def listed(patterns: dict[str, list[int]], parameters: int) -> dict[str, Any]:
    return {**EMPTY, "fingerprint": {"sha256": "0", "parameters": parameters, "sub_blocks": patterns, "others": {}}}


TERMS = ["e", *(f"t{number}" for number in range(16_000))]
MANY = {"name": "attention.0", "kind": "attention", "layer": 0, "adds": ["e"]}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (listed({"w.{0-999999999}.{0-999999999}": [1]}, 10**18), "stands for more than 262,144 names"),
        (listed({f"w{number}.{{0-262143}}": [1] for number in range(60)}, 60 * 2**18), "at most 262,144 parameters"),
        (listed({"w" * 900 + ".{0-99999}": [1]}, 100_000), "33,554,432 characters in their names"),
        (listed({f"a.{{0-63}}.{{0-1023}}.{w}": [1] for w in "abcd"}, 2**18), "fingerprint.sha256 must be"),
        (listed({"a.{" + "0-9," * 100_000 + "1}": [1]}, 1), "stands for more than"),
        (
            {**EMPTY, "terms": TERMS, "sub_blocks": [
                {**MANY, "reads": ", ".join(TERMS[1::2]), "left_out": ", ".join(TERMS[2::2]) + ", t0"},
            ]},
            "sub_blocks.0.left_out must be something that it does not read",
        ),
    ],
    ids=range(6),
)  # fmt: skip
def test_small_files_with_much_in_them(document: dict[str, Any], says: str, tmp_path: Path) -> None:
    found = outcome(json.dumps(document).encode(), tmp_path)
    assert isinstance(found, ManifestError)
    assert says in found.reason


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"schema": 1, "schema": 1}', "the key 'schema' is there twice"),
        (b'{"farskip": ' * 5000, "nested more than 64 deep"),
        (b"[" * 10**6, "nested more than 64 deep"),
        (b" " * 2**22, "Has more than 2,097,152 bytes"),
    ],
    ids=range(4),
)
def test_files_that_are_refused_before_their_content(content: bytes, says: str, tmp_path: Path) -> None:
    found = outcome(content, tmp_path)
    assert isinstance(found, ManifestError)
    assert says in found.reason


def test_a_pipe_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "farskip.json")
    manifest = Manifest.from_json(EMPTY)
    for use in (lambda: load_manifest(tmp_path), lambda: save_manifest(manifest, tmp_path)):
        with pytest.raises(ManifestError, match="Not a regular file"):
            use()


def test_a_larger_one_is_read_on_request(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(EMPTY) + " " * 2**21)
    with pytest.raises(ManifestError, match="2,097,152 bytes"):
        load_manifest(path)
    assert load_manifest(path, largest=2**22) == Manifest.from_json(EMPTY)


def test_names_are_written_as_no_terminal_obeys_them() -> None:
    written = compact({EVIL + "\ud800": [EVIL]})
    assert not UNPRINTABLE.search(written)
    assert json.loads(written) == {EVIL + "\ud800": [EVIL]}


def test_many_names_are_compared_with_few() -> None:
    known = {f"layers.{number}.up.weight": (1,) for number in range(100_000)}
    manifest = Manifest("full", fingerprint=ParameterFingerprint(known, {}))
    graph = GraphParameters({**dict(list(known.items())[:9]), "layers.777.upp.weight": (1,)}, ())
    found = bounded(lambda: check_as_written(manifest, Table(), graph))
    assert "it has 'layers.777.up.weight'" in found.reason


def test_what_can_be_written_can_be_read() -> None:
    shapes = {f"layers.{layer}.experts.{expert}.w": (2, 3) for layer in range(61) for expert in range(384)}
    found = Manifest("full", fingerprint=ParameterFingerprint(shapes, {}))
    assert Manifest.from_json(found.to_json()).fingerprint == found.fingerprint
