# SPDX-License-Identifier: Apache-2.0
"""The kinds of examples, and what is demanded of each.

`graphs`         networks whose table is known by construction (`described`): the table read is that one, or the network
                 is refused; under every connectivity the graph computes bit for bit what the description says.
`spoiled`        such graphs, made odd by edits (`spoiled`): refused, and untouched; or nothing changes under `none`,
                 the table describes what the graph does, and rewired it does what the new table says (`meaning`).
`architectures`  decoders through Dynamo (`architectures`): bit-equal to the FarSkip form written by hand, gradients up
                 to rounding; refused exactly where nothing could be left out.
`styles`         decoders of which each layer is written in another style (`handwritten`): as by hand, or refused.
`streams`        decoders whose stream is written to, selected from and reshaped (`streams`): as by hand, or refused.
`models`         the same through Dynamo.
`stacks`         decoders with a second stack before, beside or behind (`stacks`): both as by hand, or refused.
`parts`          decoders that are compiled in parts, cut at any edge (`parts`): together as by hand, or refused.
`sessions`       what a user does around a compile (`around`): as by hand, or an error, or said to be uncompiled.
`ranks`          two ranks that compile with the same options, or not (`two_ranks`): as by hand, or both raise.

Of all of them: no exception but a `FarSkipError` with a reason, and never a `VerificationError`, which says itself that
it is a defect (`demands`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from farskip_compile.testing.strategies import cases
from tests.fuzz.architectures import check_architecture
from tests.fuzz.around import check_session, sessions
from tests.fuzz.described import check_described, described
from tests.fuzz.handwritten import check_styles, styles
from tests.fuzz.parts import check_cut, cuts
from tests.fuzz.spoiled import check_spoiled, spoiled
from tests.fuzz.stacks import check_two_stacks, two_stacks
from tests.fuzz.streams.check import check_graph, check_model
from tests.fuzz.streams.description import descriptions
from tests.fuzz.two_ranks import check_pair, pairs


@dataclass(frozen=True)
class Kind:
    """A strategy, and the check of what it draws; `chunk` examples take some 20 seconds."""

    strategy: Callable[[], st.SearchStrategy[Any]]
    check: Callable[[Any], Counter[str]]
    chunk: int


KINDS = {
    "graphs": Kind(described, check_described, 100),
    "spoiled": Kind(spoiled, check_spoiled, 100),
    "architectures": Kind(cases, check_architecture, 25),
    "styles": Kind(styles, check_styles, 25),
    "streams": Kind(descriptions, check_graph, 100),
    "models": Kind(descriptions, check_model, 25),
    "stacks": Kind(two_stacks, check_two_stacks, 50),
    "parts": Kind(cuts, check_cut, 50),
    "sessions": Kind(sessions, check_session, 25),
    "ranks": Kind(pairs, check_pair, 5),
}
