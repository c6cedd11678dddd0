# SPDX-License-Identifier: Apache-2.0
"""The pass as a whole: counts what it did, and has nothing to do the second time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.normalize import Normalized, normalize
from farskip_compile.testing.strategies import capture, networks
from farskip_compile.testing.strategies.network import GeneratedNetwork
from tests.graphs import Layer, MoE, Stack, dynamo, ids


def test_a_clean_graph_is_left_alone():
    module, _ = dynamo(Stack(lambda: Layer(MoE())), ids())
    code = module.code
    assert normalize(module) == Normalized(checkpoints_opened=0, writes_replaced=0)
    module.recompile()
    assert module.code == code


@settings(max_examples=15)
@given(network=networks())
def test_the_second_time_there_is_nothing_to_do(network: GeneratedNetwork):
    module = capture(network).module
    normalize(module)
    module.recompile()
    code = module.code
    assert normalize(module).writes_replaced == 0
    module.recompile()
    assert module.code == code


def test_a_value_that_nothing_is_known_about_is_refused():
    """Nobody could say which memory it shares, or whether it is a sum."""

    def lose(module):
        node = next(node for node in module.graph.nodes if node.name == "x")
        del node.meta["example_value"]
        normalize(module)

    with pytest.raises(UnsupportedPatternError, match="'x': it carries no fake value"):
        dynamo(Stack(lambda: Layer(MoE())), ids(), edit=lose)
