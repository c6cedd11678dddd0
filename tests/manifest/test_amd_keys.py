# SPDX-License-Identifier: Apache-2.0
"""AMD's keys: every combination against what their model does with them, layer by layer, and against the oracle."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch

from farskip_compile import FarSkipConfig, Manifest
from farskip_compile.compiler.backend import Backend
from farskip_compile.errors import LayerRangeError, ManifestError
from farskip_compile.manifest import from_amd_keys
from farskip_compile.models import FarSkipForm
from tests.manifest.sample import IDS, small

LAYERS = 4
ABSENT = "absent"
MODEL = small(layers=("dense", "moe", "moe", "moe"))

FLAGS = (ABSENT, False, True)
STARTS = (ABSENT, 0, 1, 2, 3, 4)
ENDS = (ABSENT, 0, 1, 3, 4, 1e4, 10_000)


def amd_reads(config: dict[str, Any], layer: int) -> tuple[bool, bool]:
    """Whether attention reads the stream without routed experts, and experts read it without attention.

    Written from how AMD's decoder layer uses its keys, with the defaults of its configuration class.
    """
    last = min(config.get("farskip_end_idx", 1e4), config["num_hidden_layers"] - 1)
    active = config["farskip"] and config.get("farskip_start_idx", 0) <= layer <= last
    attention_only = config.get("attn_only_farskip", False)
    mlp_only = config.get("mlp_only_farskip", False)
    return bool(active and not mlp_only), bool(active and not attention_only)


def every_combination() -> list[dict[str, Any]]:
    keys = ("farskip", "attn_only_farskip", "mlp_only_farskip", "farskip_start_idx", "farskip_end_idx")
    values = product((False, True), FLAGS, FLAGS, STARTS, ENDS)
    return [
        {"num_hidden_layers": LAYERS, **{key: value for key, value in zip(keys, row, strict=True) if value != ABSENT}}
        for row in values
    ]


def test_every_combination_asks_for_what_amds_layers_do() -> None:
    refused = taken = 0
    for config in every_combination():
        theirs = [amd_reads(config, layer) for layer in range(LAYERS)]
        both = config.get("attn_only_farskip") and config.get("mlp_only_farskip")
        if config["farskip"] and (both or not any(map(any, theirs))):
            with pytest.raises(ManifestError):
                from_amd_keys(config)
            refused += 1
            continue
        found = from_amd_keys(config)
        form = FarSkipForm(MODEL, connectivity=found.connectivity, layers=found.layers)
        ours = [(form.attention_reads_n(layer), form.feed_forward_reads_x(layer)) for layer in range(LAYERS)]
        assert ours == theirs, config
        assert (found.connectivity, found.layers) in WISHES
        assert found.table.rows == ()
        assert found.fingerprint is None
        taken += 1
    assert (refused > 100, taken > 400) == (True, True)


RANGES = [
    None,
    *((first, last) for first in range(LAYERS) for last in range(first, LAYERS) if last - first < LAYERS - 1),
]
WISHES = [("none", None), *product(("full", "attention", "mlp"), RANGES)]
"""All that combinations can come to; the whole range is None."""


Graph = tuple[torch.fx.GraphModule, tuple[Any, ...]]


@pytest.fixture(scope="module")
def graph() -> Graph:
    """What Dynamo hands to a backend for the model, and what it then calls it with."""
    kept: list[Any] = []

    def keep(module: torch.fx.GraphModule, _: Any) -> Any:
        kept.append(copy.deepcopy(module))
        return lambda *args: kept.append(args) or module(*args)

    with torch.no_grad():
        torch.compile(MODEL, backend=keep, fullgraph=True)(IDS)
    return kept[0], kept[1]


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_the_backend_does_it_bit_for_bit(graph: Graph, wish: tuple[str, tuple[int, int] | None]) -> None:
    """Through the backend's own option."""
    connectivity, layers = wish
    config: dict[str, Any] = {"farskip": connectivity != "none", "num_hidden_layers": LAYERS, "hidden_size": 32}
    config["attn_only_farskip"] = connectivity == "attention"
    config["mlp_only_farskip"] = connectivity == "mlp"
    if layers is not None:
        config["farskip_start_idx"], config["farskip_end_idx"] = layers
    assert from_amd_keys(config) == Manifest(connectivity, layers)
    backend = Backend(FarSkipConfig(manifest=config, inner="eager"))
    module, args = graph
    with torch.no_grad():
        expected = FarSkipForm(MODEL, connectivity=connectivity, layers=layers)(IDS)
        if torch.equal(expected, MODEL(IDS)) and connectivity != "none":
            with pytest.raises(LayerRangeError):  # no routed experts in front of an attention in that range
                backend(copy.deepcopy(module), args)
            return
        (logits,) = backend(copy.deepcopy(module), args)(*args)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"farskip": 1}, "'farskip' should be true or false, and is 1"),
        ({"farskip": "yes"}, "'farskip' should be true or false"),
        ({"farskip": None}, "'farskip' should be true or false"),
        ({"farskip": True, "attn_only_farskip": "x"}, "'attn_only_farskip' should be true or false"),
        ({"farskip": True, "mlp_only_farskip": 0}, "'mlp_only_farskip' should be true or false"),
        ({"farskip": False, "farskip_start_idx": -1}, "'farskip_start_idx' should be the index of a layer, and is -1"),
        ({"farskip": True, "farskip_start_idx": True}, "'farskip_start_idx' should be the index of a layer"),
        ({"farskip": True, "farskip_end_idx": 2.5}, "'farskip_end_idx' should be the index of a layer, and is 2.5"),
        ({"farskip": True, "farskip_end_idx": float("inf")}, "'farskip_end_idx' should be the index"),
        ({"farskip": True, "farskip_end_idx": float("nan")}, "'farskip_end_idx' should be the index"),
        ({"farskip": True, "farskip_end_idx": "3"}, "'farskip_end_idx' should be the index"),
        ({"farskip": True, "attn_only_farskip": True, "mlp_only_farskip": True}, "are both true"),
        ({"farskip": True, "farskip_start_idx": 3, "farskip_end_idx": 2}, "no layer of 4 layers is in that range"),
        ({"farskip": True, "farskip_start_idx": 4}, "no layer of 4 layers is in that range"),
        ({"farskip_start_idx": 1}, "'farskip' is missing beside farskip_start_idx"),
    ],
    ids=str,
)
def test_wrong_and_contradictory_values(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ManifestError) as caught:
        from_amd_keys({"num_hidden_layers": LAYERS, **config}, "weights/config.json")
    assert says in caught.value.reason
    assert caught.value.reason.startswith("weights/config.json: ")
    assert caught.value.way_out


def test_without_the_number_of_layers() -> None:
    assert from_amd_keys({"farskip": True}) == Manifest("full")
    assert from_amd_keys({"farskip": True, "farskip_start_idx": 2, "farskip_end_idx": 7}) == Manifest("full", (2, 7))
    with pytest.raises(ManifestError, match="num_hidden_layers"):
        from_amd_keys({"farskip": True, "farskip_start_idx": 2})
    with pytest.raises(ManifestError, match="no layer is in that range"):
        from_amd_keys({"farskip": True, "farskip_start_idx": 2, "farskip_end_idx": 1})


def test_the_number_of_layers_of_a_text_configuration() -> None:
    config = {"farskip": True, "farskip_start_idx": 2, "text_config": {"num_hidden_layers": 5}}
    assert from_amd_keys(config) == Manifest("full", (2, 4))
