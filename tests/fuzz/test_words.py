# SPDX-License-Identifier: Apache-2.0
"""Errors speak of the user's code: every refusal of the fuzz is read for names that only a pass has given.

`demands.check_refusal` reads the texts of all generated graphs and models (`test_slice`, `make fuzz`); here are the
refused styles, one after the other, and what the reading itself finds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from farskip_compile.errors import FarSkipError, UnsupportedPatternError, Where
from farskip_compile.passes.graph import user_calls
from farskip_compile.passes.normalize import normalize
from tests.fuzz.demands import attempt
from tests.fuzz.handwritten import REFUSED_EXPERTS
from tests.fuzz.words import complaints, internal, made_by_passes
from tests.handwritten.decoder import Decoder, Experts, token_ids


class Unknown(Experts):
    """Experts of tokens that no known selection has picked, written in one of the ways that passes write otherwise."""

    how = ""

    def forward(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        flat = x.flatten(0, 1)
        p = self.router(flat).softmax(-1)
        y = self.shared(flat)
        for number, expert in enumerate(self.experts):
            tokens = (p[:, number] > 0.25).nonzero(as_tuple=True)[0]
            y = WRITES[self.how](y, tokens, expert(flat[tokens]))
        return y.view_as(x)


def _put(y: Tensor, tokens: Tensor, found: Tensor) -> Tensor:
    y[tokens] = found
    return y


def _put_in_part(y: Tensor, tokens: Tensor, found: Tensor) -> Tensor:
    out = torch.zeros_like(y)
    out[: found.shape[0]] = found
    return y + out


WRITES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "added to shared experts": lambda y, tokens, found: y.index_add_(0, tokens, found),
    "put": _put,
    "put in a part": _put_in_part,
}
REFUSED = {
    **{how: type(how, (Unknown,), {"how": how}) for how in WRITES},
    **REFUSED_EXPERTS,
}


def captured(model: nn.Module) -> fx.GraphModule:
    found: list[fx.GraphModule] = []

    def keep(module: fx.GraphModule, _: object) -> object:
        found.append(module)
        return module.forward

    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(model, backend=keep, fullgraph=True)(token_ids())
    return found[0]


@pytest.mark.parametrize("style", REFUSED)
def test_refusals_name_what_the_user_wrote(style: str) -> None:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        module = captured(Decoder(REFUSED[style], layers=2).double())
    made = attempt(module, "full")
    assert isinstance(made.error, FarSkipError)
    assert made.error.where.source


def test_the_list_is_read_off_the_passes() -> None:
    assert {"added_alone", "after_write", "farskip_storage", "farskip_written"} <= internal()
    assert {"index_put", "view_as", "zeros_like"} <= made_by_passes()
    assert not {"index_put", "view_as", "farskip_compile"} & internal()


class Written(nn.Module):
    """Rows written by an index, which a pass writes as an `index_put`."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = ids.double() * 2.0
        x[ids[:, 0] % 2] = 1.0
        x[ids[:, 0] % 2] += 1.0
        return x


def test_a_node_that_a_pass_has_made_is_not_the_users() -> None:
    module = captured(Written())
    errors = [
        UnsupportedPatternError("'index_put' moves rows", where=Where(node="setitem")),
        UnsupportedPatternError("nothing is known of this", where=Where(node="index_put")),
        UnsupportedPatternError("it reads added_alone_3"),
    ]
    assert [len(complaints(error, module.graph)) for error in errors] == [1, 1, 1]
    assert not complaints(UnsupportedPatternError("'double' is odd", where=Where(node="double")), module.graph)


def test_each_node_of_a_normalised_graph_knows_the_users_call() -> None:
    module = captured(Written())
    names = {node.name for node in module.graph.nodes}
    normalize(module)
    assert {user_calls.name_written(node) for node in module.graph.nodes} <= names
    assert {node.name for node in module.graph.nodes} - names
