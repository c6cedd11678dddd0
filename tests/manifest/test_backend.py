# SPDX-License-Identifier: Apache-2.0
"""The option `manifest`: it says what is rewired, in every form in which it can be given."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import farskip_compile
from farskip_compile import (
    ConfigError,
    FarSkipConfig,
    Manifest,
    Outcome,
    describe,
    save_manifest,
)
from farskip_compile.compiler.config import resolve
from farskip_compile.errors import ManifestError
from farskip_compile.models import FarSkipForm
from tests.compare import assert_gradients_close, run_with_gradients
from tests.compile_each import compile_each
from tests.manifest.sample import IDS, compiled, described, small

TABLE = {"moe.2": ["a2"], "attention.2": ["r1"]}
WISHES: list[dict[str, Any]] = [
    {},
    {"connectivity": "attention"},
    {"connectivity": "mlp", "layers": (1, 1)},
    {"layers": (1, 2)},
    {"connectivity": "none"},
]


def test_equals_the_oracle_of_what_was_described() -> None:
    model = small()
    manifests = [describe(model, IDS, **wish) for wish in WISHES]
    with torch.no_grad():
        runs = compile_each(model, [{"inner": "eager", "manifest": manifest} for manifest in manifests])
        for wish, run in zip(WISHES, runs, strict=True):
            assert torch.equal(run(IDS), FarSkipForm(model, **wish)(IDS)), wish


def test_a_table_and_gradients() -> None:
    model = small()
    manifest = describe(model, IDS, connectivity=TABLE)
    options = {"inner": "eager", "manifest": manifest}
    expected = run_with_gradients(FarSkipForm(model, layers=(2, 2)), model, IDS)
    found = run_with_gradients(torch.compile(model, backend="farskip", options=options), model, IDS)
    assert torch.equal(found[0], expected[0])
    assert_gradients_close(found[1], expected[1], 1e-12)


def test_given_as_record_json_file_and_folder(tmp_path: Path) -> None:
    model = small()
    manifest = describe(model, IDS, connectivity="mlp")
    (tmp_path / "config.json").write_text("{}")
    save_manifest(manifest, tmp_path / "config.json")
    path = save_manifest(manifest, tmp_path / "mine.json")
    with torch.no_grad():
        expected = FarSkipForm(model, connectivity="mlp")(IDS)
        for form in (manifest, str(path)):
            assert torch.equal(compiled(model, manifest=form), expected)
    for form in (manifest.to_json(), {"farskip": manifest.to_json()}, path, tmp_path):
        config = resolve(FarSkipConfig(manifest=form))
        assert (config.manifest, config.connectivity, config.layers) == (manifest, "mlp", None)


def test_a_path_is_read_when_the_backend_is_made(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="neither"):
        farskip_compile.backend(manifest=tmp_path)
    with pytest.raises(ManifestError, match=r"the manifest: the field connectivity is missing"):
        farskip_compile.backend(manifest={"schema": 1, "layers": None})
    with pytest.raises(ConfigError, match="manifest=3 is not a manifest"):
        FarSkipConfig(manifest=3)  # type: ignore[arg-type]


WAYS = ["module", "in place", "forward", "function", "wrapped", "part of another"]


@pytest.mark.parametrize("how", WAYS)
def test_whatever_is_compiled(how: str) -> None:
    """Names of parameters begin at different places in each of these graphs."""
    model = small()
    options: dict[str, Any] = {"inner": "eager", "manifest": described()}

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"the": model})

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.inner["the"](ids) * 2

    with torch.no_grad():
        expected = FarSkipForm(model)(IDS)
        if how == "in place":
            model.compile(backend="farskip", fullgraph=True, options=options)
            output = model(IDS)
        elif how == "function":
            output = torch.compile(lambda ids: model(ids), backend="farskip", fullgraph=True, options=options)(IDS)
        elif how == "wrapped":
            output = torch.compile(Around(), backend="farskip", fullgraph=True, options=options)(IDS) / 2
        elif how == "part of another":
            around = Around()
            manifest = describe(around, IDS)
            options["manifest"] = manifest
            assert manifest.fingerprint is not None
            assert "inner.the.lm_head.weight" in manifest.fingerprint.shapes
            output = torch.compile(model, backend="farskip", fullgraph=True, options=options)(IDS)
        else:
            target = model.forward if how == "forward" else model
            output = torch.compile(target, backend="farskip", fullgraph=True, options=options)(IDS)
    assert torch.equal(output, expected)
    assert farskip_compile.reports().compiles[-1].outcome is Outcome.REWIRED


def test_describing_what_is_compiled_already() -> None:
    model = small()
    assert describe(torch.compile(model, backend="eager"), IDS) == described()
    model.compile(backend="farskip", options={"inner": "eager"})
    assert describe(model, IDS) == described()


def test_a_graph_without_a_stack_passes_through() -> None:
    function = torch.compile(torch.tanh, backend="farskip", options={"inner": "eager", "manifest": Manifest("full")})
    assert torch.equal(function(torch.ones(3)), torch.ones(3).tanh())
    assert farskip_compile.reports().compiles[-1].outcome is Outcome.NO_STACK


# Beside other options


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"connectivity": "mlp"}, "connectivity='mlp' contradicts the manifest, in which it is 'full'"),
        ({"connectivity": TABLE}, "connectivity=.* contradicts the manifest"),
        ({"layers": (0, 1)}, r"layers=\[0, 1\] contradicts the manifest, in which it is \[1, 2\]"),
    ],
)
def test_contradictions(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        farskip_compile.backend(manifest=Manifest("full", (1, 2)), **given)
    assert "drop" in caught.value.way_out


def test_what_is_not_said_or_the_same_is_no_contradiction() -> None:
    manifest = Manifest("attention", (1, 2))
    for given in (
        {},
        {"connectivity": "attention"},
        {"layers": [1, 2]},
        {"connectivity": "attention", "layers": (1, 2)},
    ):
        config = resolve(FarSkipConfig(manifest=manifest, **given))  # type: ignore[arg-type]
        assert (config.connectivity, config.layers) == ("attention", (1, 2))
        assert dataclasses.replace(config, inner="eager").connectivity == "attention"
    table = resolve(FarSkipConfig(manifest=Manifest({"moe.2": ["a2"]}), connectivity={"moe.2": ("a2",)}))
    assert table.connectivity == {"moe.2": ("a2",)}
    with pytest.raises(ConfigError, match="connectivity='full' contradicts"):
        farskip_compile.backend(manifest=manifest, connectivity="full")  # which is the default, and was said


def test_the_default_stays_one() -> None:
    """Through copies, pickles and `replace`."""
    for config in (FarSkipConfig(), copy.deepcopy(FarSkipConfig()), pickle.loads(pickle.dumps(FarSkipConfig()))):
        assert resolve(config).connectivity == "full"
        assert type(config.to_json()["connectivity"]) is str
        assert resolve(dataclasses.replace(config, manifest=Manifest("mlp"))).connectivity == "mlp"


def test_merged_reductions_need_a_manifest_in_which_nothing_reads_between_them() -> None:
    for name in ("full", "mlp"):
        assert resolve(FarSkipConfig(manifest=Manifest(name), merge_reductions=True)).merge_reductions
    with pytest.raises(ConfigError, match="merge_reductions"):
        farskip_compile.backend(manifest=Manifest("attention"), merge_reductions=True)


def test_identity_of_the_configuration() -> None:
    """Small, equal for equal manifests, and another one for each other."""
    manifest = described()
    one = FarSkipConfig(manifest=manifest).to_json()
    assert len(json.dumps(one["manifest"])) <= 66
    assert FarSkipConfig(manifest=manifest.to_json()).to_json() == one
    shorter = dataclasses.replace(manifest.table, rows=manifest.table.rows[:-1])
    others = [Manifest("full"), dataclasses.replace(manifest, table=shorter), None]
    assert len({one["manifest"], *(FarSkipConfig(manifest=other).to_json()["manifest"] for other in others)}) == 4
