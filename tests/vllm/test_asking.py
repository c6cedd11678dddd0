# SPDX-License-Identifier: Apache-2.0
"""What a configuration asks for, and that it is told apart from all else: without vLLM."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from farskip_compile.errors import ConfigError, ManifestError
from farskip_compile.manifest import Manifest, write_manifest
from farskip_compile.vllm import asked as asking
from farskip_compile.vllm.asked import Asked, ServingOptions, settle


def config(folder: Any, additional: Any = None, backend: str = "inductor") -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(model=str(folder), revision=None),
        compilation_config=SimpleNamespace(backend=backend),
        additional_config={} if additional is None else additional,
    )


def test_nobody_asks(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    plain = config(tmp_path)
    assert settle(plain) is None
    assert plain.additional_config == {}


def test_who_asks_first(tmp_path):
    """Options, the manifest beside the weights, AMD's keys, the name of the backend."""
    assert settle(config(tmp_path, backend="farskip")).by.endswith("backend 'farskip'")
    (tmp_path / "config.json").write_text(json.dumps({"farskip": True, "num_hidden_layers": 4}))
    assert settle(config(tmp_path)).config().connectivity is None
    assert settle(config(tmp_path)).manifest.connectivity == "full"
    write_manifest(Manifest("mlp"), tmp_path / "farskip.json", guard=False)
    assert settle(config(tmp_path)).by == f"the manifest {tmp_path / 'farskip.json'}"
    assert settle(config(tmp_path, {"farskip": {"overlap": True}})).by == "additional_config['farskip']"
    assert settle(config(tmp_path, {"farskip": {"overlap": True}})).manifest.connectivity == "mlp"
    with pytest.raises(ConfigError, match="contradicts the manifest"):
        settle(config(tmp_path, {"farskip": {"connectivity": "full"}}))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("full", "not a mapping of options"),
        ({"conectivity": "full"}, "unknown option 'conectivity'"),
        ({"overlap": "yes"}, "overlap='yes' is neither true nor false"),
    ],
)
def test_wrong_options(tmp_path, options, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        settle(config(tmp_path, {"farskip": options}))
    assert caught.value.way_out


def test_a_manifest_that_changes_nothing_asks_for_nothing(tmp_path):
    write_manifest(Manifest("none"), tmp_path / "farskip.json", guard=False)
    assert settle(config(tmp_path)) is None


def test_settling_twice_is_settling_once_and_a_change_is_seen(tmp_path):
    write_manifest(Manifest("full"), tmp_path / "farskip.json", guard=False)
    found = config(tmp_path, {"other": 1})
    first = settle(found)
    settled = found.additional_config
    assert settled["other"] == 1
    assert json.loads(json.dumps(settled)) == settled, "vLLM hashes it as JSON"
    assert settle(found).digest == first.digest
    assert found.additional_config == settled
    write_manifest(Manifest("mlp"), tmp_path / "farskip.json", guard=False)
    with pytest.raises(ManifestError, match="has changed while vLLM started"):
        settle(found)


def test_the_digest_tells_options_manifests_and_sources_apart(monkeypatch):
    ask = [
        Asked(ServingOptions(connectivity="full"), None, "a"),
        Asked(ServingOptions(connectivity="mlp"), None, "a"),
        Asked(ServingOptions(), Manifest("full"), "a"),
        Asked(ServingOptions(), Manifest("mlp"), "a"),
    ]
    digests = {one.digest for one in ask}
    monkeypatch.setattr(asking, "source_hash", lambda: "another")
    assert len(digests | {ask[0].digest}) == 5
