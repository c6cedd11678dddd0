# SPDX-License-Identifier: Apache-2.0
"""A module, and a program that stands alone, of a description.

Contract: `build` gives the module as a user would have written it, and what it is called with. Its forward is
generated source: a write is the statement that the form says, and not a function that does the same.
"""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fuzz.streams import blocks
from tests.fuzz.streams.blocks import FEED_FORWARDS, WIDTH, Attention
from tests.fuzz.streams.description import ADDS, BATCH, TOKENS, Description, Placed, placed
from tests.fuzz.streams.writes import FUNCTIONS

VOCABULARY = 11


class Decoder(nn.Module):
    """The parts; `forward` is generated."""

    def __init__(self, feed_forwards: tuple[str, ...]) -> None:
        super().__init__()
        count = len(feed_forwards)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.attention = nn.ModuleList([Attention() for _ in range(count)])
        self.feed_forward = nn.ModuleList([FEED_FORWARDS[name]() for name in feed_forwards])
        self.before = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(count)])
        self.between = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(count)])
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)


def forward_source(description: Description, changes: dict[int, list[Placed]]) -> str:
    """`def forward(self, ids, ...)`."""
    arguments = [name for place in changes.values() for one in place for name in named(one)]
    lines = ["x = self.embed(ids)"]

    def change(place: int) -> None:
        lines.extend(line for one in changes.get(place, ()) for line in one.form.lines(one.number))

    for layer, style in enumerate(description.adds):
        change(4 * layer)
        lines.append(f"h = self.before[{layer}](x)")
        change(4 * layer + 1)
        lines.append(ADDS[style].format(f"self.attention[{layer}](h)"))
        change(4 * layer + 2)
        lines.append(f"h = self.between[{layer}](x)")
        change(4 * layer + 3)
        lines.append(ADDS[style].format(f"self.feed_forward[{layer}](h)"))
    change(4 * len(description.adds))
    lines.append("return self.head(self.last(x))")
    return f"def forward({', '.join(['self', 'ids', *arguments])}):\n" + textwrap.indent("\n".join(lines), "    ")


def named(one: Placed) -> dict[str, Tensor]:
    """The inputs of a change under the names that the source gives them."""
    return {f"{name.lower()}{one.number}": value for name, value in one.inputs.items()}


def token_ids() -> Tensor:
    """Token ids [batch, tokens]."""
    return torch.arange(BATCH * TOKENS).mul(7).remainder(VOCABULARY).view(BATCH, TOKENS)


def build(description: Description) -> tuple[Any, tuple[Tensor, ...]]:
    """The module, in float64, and its arguments.

    Raises:
        Unfit: the description makes no program.
    """
    changes = placed(description)
    scope: dict[str, Any] = {"torch": torch, "F": F}
    exec(compile(FUNCTIONS + forward_source(description, changes), "<generated decoder>", "exec"), scope)
    torch.manual_seed(description.seed)
    model = type("Generated", (Decoder,), {"forward": scope["forward"]})(description.feed_forwards).double()
    more = [value for place in changes.values() for one in place for value in named(one).values()]
    return model, (token_ids(), *more)


def script(description: Description, options: dict[str, Any], expected: Tensor) -> str:
    """A program that compiles the same model and compares it with what is expected, without this package's tests."""
    changes = placed(description)
    arguments = [
        f"torch.tensor({value.tolist()}, dtype={value.dtype})"
        for place in changes.values()
        for one in place
        for value in named(one).values()
    ]
    return "\n".join(
        [
            inspect.getsource(blocks).split('"""', 2)[2].strip(),
            "import farskip_compile",
            f"VOCABULARY = {VOCABULARY}",
            FUNCTIONS,
            inspect.getsource(Decoder),
            "class Generated(Decoder):",
            textwrap.indent(forward_source(description, changes), "    "),
            "",
            f"torch.manual_seed({description.seed})",
            f"model = Generated({description.feed_forwards}).double()",
            f"ids = torch.arange({BATCH * TOKENS}).mul(7).remainder(VOCABULARY).view({BATCH}, {TOKENS})",
            f"arguments = ({', '.join(['ids', *arguments])},)",
            f"expected = torch.tensor({expected.tolist()}, dtype=torch.float64)  # the form by hand",
            "def tell(report):",
            "    print(report.summary(), *(f'{row.name} leaves out {report.table.names(row.left_out)}' "
            "for row in report.rows), sep='\\n')",
            "torch._dynamo.config.capture_dynamic_output_shape_ops = True",
            f'compiled = torch.compile(model, backend="farskip", options={{**{options}, "on_report": tell}})',
            "with torch.no_grad():",
            "    found, plain = compiled(*arguments), model(*arguments)",
            'print("the form by hand:", torch.equal(found, expected), "as written:", torch.equal(found, plain))',
        ]
    )
