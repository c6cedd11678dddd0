# SPDX-License-Identifier: Apache-2.0
"""Sessions on two ranks of gloo, which compile one after another, with the same options or not.

In:    a `Pair`: for each compile, what each rank asks for; the model is the same, a feed-forward is halved and reduced.
Out:   counts by verdict; or the first demand that is not met, as `Broken`.

Demands: where both ask for the same, both have the bits of the form by hand; else both raise, whatever was compiled
before, and however often. A rank that does not change its options may be in a collective: then the other one raises.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed._functional_collectives import all_reduce

from farskip_compile import FarSkipError
from tests.distributed.ranks import RankError, run_ranks
from tests.fuzz.around import DESCRIPTION, Plain
from tests.fuzz.demands import demand
from tests.fuzz.streams.blocks import MLP, Experts
from tests.fuzz.streams.by_hand import compute
from tests.fuzz.streams.source import token_ids

SECONDS = 20.0
"""The timeout of the process group: for so long a rank waits that changes an option alone."""


@dataclass(frozen=True)
class Pair:
    """What two ranks ask for, compile by compile."""

    asked: tuple[tuple[str, str], ...]
    reset: bool = False
    """`torch.compiler.reset` in front of each compile."""


class Halved(MLP):
    """A dense feed-forward, of which each rank computes half, and reduces."""

    def forward(self, x: Tensor) -> Tensor:
        return all_reduce(super().forward(x) * 0.5, "sum", dist.group.WORLD)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """One to four compiles; in half of the sessions the ranks differ in the last one."""
    names = ["full", "attention", "mlp"]
    alike = [draw(st.sampled_from(names)) for _ in range(draw(st.integers(1, 4)))]
    asked = [(name, name) for name in alike]
    if draw(st.booleans()):
        asked.append((draw(st.sampled_from(names)), draw(st.sampled_from(names))))
    return Pair(tuple(asked), draw(st.booleans()))


def _session(rank: int, world_size: int, example: Pair) -> list[str]:
    """What came of each compile on this rank."""
    torch.manual_seed(0)
    model: Any = Plain()
    for block in model.feed_forward:
        if isinstance(block, Experts) and block.shared is not None:
            block.shared = Halved()
    model = model.double()
    found = []
    for both in example.asked:
        if example.reset:
            torch.compiler.reset()
        compiled = torch.compile(model, backend="farskip", options={"inner": "eager", "connectivity": both[rank]})
        try:
            with torch.no_grad():
                output = compiled(token_ids())
                expected = compute(DESCRIPTION, model, token_ids(), both[rank])
        except FarSkipError as error:
            found.append(type(error).__name__)
            break
        except RuntimeError as error:
            if not any(word in str(error) for word in ("gloo", "timeout", "closed")):
                raise
            found.append("in a collective")
            break
        found.append("right" if torch.equal(output, expected) else "wrong")
    return found


def check_pair(example: Pair) -> Counter[str]:
    """Check one session of two ranks.

    Raises:
        Broken: a demand is not met.
    """
    try:
        ranks = run_ranks(_session, 2, example, timeout=SECONDS)
    except RankError as error:
        return Counter({f"PyTorch's errors: {str(error).splitlines()[-1][:60]}": 1})
    unlike = next((number for number, (one, other) in enumerate(example.asked) if one != other), None)
    alike = len(example.asked) if unlike is None else unlike
    demand(any(verdicts[-1] != "in a collective" for verdicts in ranks), f"neither says why it waits: {ranks}")
    for verdicts in ranks:
        demand(verdicts[:alike] == ["right"] * alike, f"compiles with the same options: {ranks}")
        if unlike is not None:
            demand(verdicts[unlike] not in ("right", "wrong"), f"unlike options in compile {unlike}, no error: {ranks}")
    return Counter({"accepted": 1, f"refused {min(verdicts[-1] for verdicts in ranks)}": int(unlike is not None)})
