# SPDX-License-Identifier: Apache-2.0
"""The record: what it says, its JSON form, and that nothing else is taken for one."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import farskip_compile
from farskip_compile import Manifest, describe
from farskip_compile.errors import ManifestError
from farskip_compile.manifest.json_text import compact
from farskip_compile.manifest.patterns import expanded, extent, grouped
from farskip_compile.tools.describe import from_report
from farskip_compile.tools.explain import versions
from tests.manifest.sample import IDS, compiled, small


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return describe(small(), IDS)


def test_says_what_the_rewired_model_reads(manifest: Manifest) -> None:
    data = manifest.to_json()
    assert (data["schema"], data["connectivity"], data["layers"]) == (1, "full", None)
    assert data["terms"] == ["e", "a0", "m0", "a1", "r1", "s1", "a2", "r2", "s2"]
    rows = {row["name"]: row for row in data["sub_blocks"]}
    assert list(rows) == ["attention.0", "mlp.0", "attention.1", "moe.1", "attention.2", "moe.2"]
    assert rows["attention.2"] == {
        "name": "attention.2",
        "kind": "attention",
        "layer": 2,
        "adds": ["a2"],
        "reads": "e..a1, s1",
        "left_out": "r1",
    }
    assert rows["moe.2"]["reads"] == "e..s1"
    assert rows["moe.2"]["left_out"] == "a2"
    assert data["versions"] == versions()
    assert "torch" in data["versions"]


def test_fingerprint_has_every_parameter(manifest: Manifest) -> None:
    model = small()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert manifest.fingerprint is not None
    assert manifest.fingerprint.shapes == shapes
    assert set(manifest.fingerprint.others) == {"token_embedding.weight", "final_norm.weight", "lm_head.weight"}


def test_json_round_trip(manifest: Manifest) -> None:
    data = manifest.to_json()
    for text in (json.dumps(data), compact(data), json.dumps(data, sort_keys=True)):
        again = Manifest.from_json(json.loads(text))
        assert again == manifest
        assert again.digest == manifest.digest
    table = dataclasses.replace(manifest, connectivity={"moe.2": ("a2",)}, versions={})
    assert Manifest.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_digest_is_of_the_content(manifest: Manifest) -> None:
    assert dataclasses.replace(manifest, versions={}, origin="elsewhere").digest == manifest.digest
    shorter = dataclasses.replace(manifest.table, rows=manifest.table.rows[:-1])
    changes: list[dict[str, Any]] = [
        {"connectivity": "mlp"},
        {"layers": (0, 1)},
        {"table": shorter},
    ]
    others = [dataclasses.replace(manifest, **change).digest for change in changes]
    assert len({manifest.digest, *others}) == 4


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy in which the value at `path` is another one; None takes the key out."""
    data = copy.deepcopy(data)
    *parents, last = path.split("/")
    place: Any = data
    for key in parents:
        place = place[int(key) if key.isdigit() else key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return data


WRONG = [
    ("schema", 2, "schema is 2, and this version reads 1"),
    ("schema", True, "schema is True, and this version reads 1"),
    ("schema", None, "schema is None, and this version reads 1"),
    ("connectivity", "ful", "connectivity must be one of full"),
    ("connectivity", {"moe.2": "a2"}, "connectivity.moe.2 must be a list, not str 'a2'"),
    ("layers", [1], "layers must be null, or the first and the last layer"),
    ("layers", [2, 1], "layers must be null"),
    ("layers", None, "layers is missing"),
    ("layers", [0, 3], "layers must be layers of the model, below 3, not tuple (0, 3)"),
    ("layers", [0, 10**18], "layers must be layers of the model, below 3"),
    ("terms", ["e", 3], "terms.1 must be a string"),
    ("terms", ["e", "e"], "terms must be a list without repetitions"),
    ("sub_blocks", ["attention.0"], "sub_blocks.0 must be a JSON object"),
    ("sub_blocks", {"attention.0": {}}, "sub_blocks must be a list"),
    ("sub_blocks/5/name", "moe.1", "sub_blocks must be a list without repetitions"),
    ("sub_blocks/5/kind", "moe", "sub_blocks.5.kind must be one of attention"),
    ("sub_blocks/5/layer", -1, "sub_blocks.5.layer must be a whole number"),
    ("sub_blocks/5/layer", 10**18, "sub_blocks.5.layer must be a whole number, not above that of sub-blocks"),
    ("sub_blocks/5/adds", ["r9"], "sub_blocks.5.adds must be a list of names"),
    ("sub_blocks/5/reads", "e..s9", "sub_blocks.5.reads must be names from 'terms'"),
    ("sub_blocks/5/reads", "s1..e", "sub_blocks.5.reads must be names from 'terms'"),
    ("sub_blocks/5/reads", ["e"], "sub_blocks.5.reads must be a string"),
    ("sub_blocks/5/left_out", "a1", "sub_blocks.5.left_out must be something that it does not read"),
    ("sub_blocks/5/evidence", "top-k", "unknown field sub_blocks.5.evidence"),
    ("fingerprint/sha256", "0" * 64, "fingerprint.sha256 must be "),
    ("fingerprint/parameters", 3, "fingerprint.parameters must be the number of parameters listed"),
    ("fingerprint/others/lm_head.weight", [32, 33], "fingerprint.sha256 must be "),
    ("fingerprint/others/lm_head.weight", [32, "x"], "fingerprint.others.lm_head.weight.1 must be an integer"),
    ("fingerprint/others/lm_head.{3-1}.weight", [1], "fingerprint.others.lm_head.{3-1}.weight must be under a key"),
    ("fingerprint/others/lm_head.{x}.weight", [1], "fingerprint.others.lm_head.{x}.weight must be under a key"),
    ("fingerprint/others/w.{0-99999999999999999999999}", [1], "has an index of more than 9 digits"),
    ("fingerprint/others/w.{0-999999999}", [1], "it stands for more than 262,144 names"),
    ("fingerprint/others/" + "{0-9}." * 4000 + "w", [1], "it stands for more than 262,144 names"),
    ("fingerprint/others/lm_head.weight", [32, 10**400], "must be a shape"),
    ("versions", {"torch": 2}, "versions.torch must be a string"),
    ("rows", [], "unknown field rows"),
]


@pytest.mark.parametrize(("path", "value", "says"), WRONG, ids=[f"{path}-{value}" for path, value, _ in WRONG])
def test_what_is_wrong_is_named_with_its_file(manifest: Manifest, path: str, value: Any, says: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(changed(manifest.to_json(), path, value), "weights/farskip.json")
    assert says in caught.value.reason
    assert caught.value.reason.startswith("weights/farskip.json: ")
    assert caught.value.way_out


def test_layers_beside_a_table_and_no_object_at_all(manifest: Manifest) -> None:
    data = changed(manifest.to_json(), "connectivity", {"moe.2": ["a2"]})
    with pytest.raises(ManifestError, match="layers must be null beside a table"):
        Manifest.from_json({**data, "layers": [0, 1]})
    with pytest.raises(ManifestError, match="the whole must be a JSON object, not list \\[\\]"):
        Manifest.from_json([])


def test_a_parameter_listed_twice(manifest: Manifest) -> None:
    data = manifest.to_json()
    data["fingerprint"]["sub_blocks"]["lm_head.weight"] = [32, 32]
    data["fingerprint"]["parameters"] += 1
    with pytest.raises(ManifestError, match=r"fingerprint\.sub_blocks must be a list without repetitions"):
        Manifest.from_json(data)


# Made from what was compiled


def test_from_a_report_of_the_compile(manifest: Manifest) -> None:
    model = small()
    compiled(model)
    (report,) = farskip_compile.reports().compiles
    assert from_report(report, model) == manifest


def test_from_a_report_of_another_model() -> None:
    compiled(small())
    (report,) = farskip_compile.reports().compiles
    with pytest.raises(ManifestError, match=r"another model: 'layers\.1\.feed_forward\.\S+', which its sub-blocks use"):
        from_report(report, small(layers=("dense", "dense", "dense")))


def test_from_a_report_without_a_stack() -> None:
    import torch

    torch.compile(lambda x: x + 1, backend="farskip", options={"inner": "eager"})(torch.ones(3))
    with pytest.raises(ManifestError, match="no residual stack") as caught:
        from_report(farskip_compile.reports().compiles[-1], small())
    assert "reports().compiles" in caught.value.way_out


def test_a_refusal_is_raised_as_it_is() -> None:
    with pytest.raises(farskip_compile.errors.LayerRangeError):
        describe(small(), IDS, layers=(1, 9))
    with pytest.raises(farskip_compile.errors.DenseModelError):
        describe(small(layers=("dense", "dense")), IDS)


def test_what_can_not_be_captured_says_where() -> None:
    from tests.sample_models import Breaks

    with pytest.raises(ManifestError, match=r"as one graph.*sample_models\.py:"):
        describe(Breaks(), IDS)


def test_only_a_module_has_parameters() -> None:
    model = small()
    with pytest.raises(ManifestError, match="is not a module"):
        describe(lambda ids: model(ids), IDS)
    assert describe(model.forward, IDS) == describe(model, IDS)


# Patterns of names

PARTS = st.sampled_from(["layers", "experts", "w", "0", "1", "2", "3", "7", "10", "01", "{", "a{0-1}", "}x"])


@settings(max_examples=200)
@given(st.dictionaries(st.lists(PARTS, min_size=1, max_size=4).map(".".join), st.sampled_from([(1,), (2, 3), ()])))
def test_patterns_stand_for_all_names_exactly(shapes: dict[str, tuple[int, ...]]) -> None:
    patterns = grouped(shapes)
    found = [(name, shape) for pattern, shape in patterns.items() for name in expanded(pattern)]
    assert len(found) == len(shapes)
    assert dict(found) == shapes
    extents = [extent(pattern, len(shapes)) for pattern in patterns]
    assert sum(names for names, _ in extents) == len(shapes)
    assert sum(characters for _, characters in extents) >= sum(map(len, shapes))


def test_a_deep_model_takes_a_few_lines() -> None:
    """46,848 parameters of experts that are modules each, and a layer that has none."""
    names = [
        f"layers.{i}.experts.{e}.{w}.weight" for i in range(3, 64) for e in range(256) for w in ("up", "gate", "down")
    ]
    shapes = {name: (2048, 7168) if ".up." in name or ".gate." in name else (7168, 2048) for name in names}
    assert list(grouped(shapes)) == [
        f"layers.{{3-63}}.experts.{{0-255}}.{w}.weight" for w in ("up", "gate", "down")
    ]  # fmt: skip
    del shapes["layers.5.experts.7.up.weight"]
    assert list(grouped(shapes))[:2] == [
        "layers.{3-4,6-63}.experts.{0-255}.up.weight",
        "layers.5.experts.{0-6,8-255}.up.weight",
    ]
