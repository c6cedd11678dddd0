# SPDX-License-Identifier: Apache-2.0
"""From a wish to the terms that each row leaves out: the rules of the paper, ranges, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from farskip_compile.errors import ConnectivityError, DenseModelError, LayerRangeError
from farskip_compile.passes.rewire.request import RewireRequest, ask, is_shortcut
from farskip_compile.records.wiring import classify_wiring
from tests.graphs import WIDTH, Attention, Dense, Experts, Layer, MoE, Stack, table_of


def table(pattern: str):
    """`m` a dense layer, `r` routed experts, `s` routed and shared ones."""
    blocks = iter([{"m": Dense, "r": Experts, "s": MoE}[letter] for letter in pattern])
    return table_of(Stack(lambda: Layer(next(blocks)()), layers=len(pattern)))


@pytest.fixture(scope="module")
def mixed():
    return table("msrm")


def left_out(table, connectivity, layers=None) -> dict[str, str]:
    request = ask(table, connectivity, layers)
    return {name: " ".join(table.names(terms)) for name, terms in request.left_out.items()}


def test_full(mixed):
    assert left_out(mixed, "full") == {
        "mlp.0": "a0",  # a dense layer is a parallel block, the first one too
        "moe.1": "a1",  # behind a dense layer attention has nothing to leave out
        "attention.2": "r1",
        "moe.2": "a2",
        "attention.3": "r2",
        "mlp.3": "a3",
    }


def test_attention_and_mlp_are_its_two_halves(mixed):
    halves = {**left_out(mixed, "attention"), **left_out(mixed, "mlp")}
    assert halves == left_out(mixed, "full")
    assert set(left_out(mixed, "attention")) == {"attention.2", "attention.3"}


def test_none(mixed):
    assert ask(mixed, "none") == RewireRequest({})


def test_the_first_attention_of_a_range_leaves_out_the_layer_before_it(mixed):
    assert left_out(mixed, "full", (2, 2)) == {"attention.2": "r1", "moe.2": "a2"}
    assert left_out(mixed, "attention", (3, 3)) == {"attention.3": "r2"}


@pytest.mark.parametrize("layers", [(0, 4), (-1, 2), (2, 1), (4, 4)])
def test_ranges_outside_the_model(mixed, layers):
    with pytest.raises(LayerRangeError, match="outside"):
        ask(mixed, "full", layers)


def test_a_range_in_which_nothing_can_change(mixed):
    with pytest.raises(LayerRangeError, match="nothing"):
        ask(mixed, "attention", (0, 1))


def test_dense_model():
    dense = table("mm")
    for wish in ("full", "attention", "mlp", "lag2"):
        with pytest.raises(DenseModelError, match="no routed experts"):
            ask(dense, wish)
    assert ask(dense, "none") == RewireRequest({})
    names = {row: dense.names(terms) for row, terms in ask(dense, "ladder").left_out.items()}
    assert names == {"mlp.0": ["a0"], "attention.1": ["m0"], "mlp.1": ["a1"]}
    assert ask(dense, {"mlp.0": ["a0"]}).left_out.keys() == {"mlp.0"}


class Shortcut(nn.Module):
    """The experts stand beside a dense block and the attention behind it, and join at the end of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(4))
        self.attention, self.attention_2, self.dense, self.dense_2 = Attention(), Attention(), Dense(), Dense()
        self.experts = Experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norms[0](x))
        h = self.norms[1](x)
        routed = self.experts(h)
        x = x + self.dense(h)
        x = x + self.attention_2(self.norms[2](x))
        return x + self.dense_2(self.norms[3](x)) + routed


def test_shortcut_experts_are_hidden_by_design():
    shortcut = table_of(Stack(Shortcut))
    for connectivity in ("full", "attention", "mlp"):
        assert ask(shortcut, connectivity) == RewireRequest({}, ("moe.1", "moe.3"))
    assert classify_wiring(shortcut) == "shortcut MoE"
    assert left_out(shortcut, {"attention.2": ["r1"]}) == {"attention.2": "r1"}  # who asks for more gets it


def test_experts_without_the_attention_of_their_layer_are_no_shortcut(mixed):
    assert not any(is_shortcut(mixed, row) for row in mixed.rows)
    rewired = ask(mixed, "full").wanted(mixed)
    assert not any(is_shortcut(rewired, row) for row in rewired.rows)


def test_wanted_table(mixed):
    request = ask(mixed, "full")
    wanted = request.wanted(mixed)
    for before, after in zip(mixed.rows, wanted.rows, strict=True):
        assert set(before.reads) - set(after.reads) == set(request.left_out.get(before.name, ()))
        assert set(after.reads) <= set(before.reads)
    assert wanted.as_written() == mixed
    assert {row.name: row.left_out for row in wanted.rows if row.left_out} == dict(request.left_out)
    assert ask(wanted, "full").left_out == {}
    assert set(ask(wanted, "full").already) == set(request.left_out)


def test_table_of_the_user(mixed):
    wish = {"attention.3": ["r2", "a0"], "moe.2": ["r1"], "mlp.0": []}
    assert left_out(mixed, wish) == {"attention.3": "a0 r2", "moe.2": "r1"}


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        ({"attention.9": ["r1"]}, ["attention.9", "attention.0"]),
        ({"attention.2": ["r9"]}, ["r9", "a1"]),
        ({"attention.2": ["r2"]}, ["r2", "does not read"]),
        ({"attention.0": ["e"]}, ["nothing to read"]),
    ],
)
def test_errors_name_what_is_wrong_and_what_exists(mixed, wish, names):
    with pytest.raises(ConnectivityError) as caught:
        ask(mixed, wish)
    for name in names:
        assert name in str(caught.value)
