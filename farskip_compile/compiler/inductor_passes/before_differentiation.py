# SPDX-License-Identifier: Apache-2.0
"""What is cut before differentiation: the batch in parts, exchanges without drops in pieces.

In:    the module of a Dynamo graph, rewired or not; the plan.
Out:   its graph, cut.
Never: schedules anything; that is done after differentiation, when pieces are known by their notes.

Of a part of a model, which returns what is in flight, exchanges are cut before it is cut off (`PartInPieces`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from torch import fx

from farskip_compile.compiler.config import PieceCount, PiecesAlong
from farskip_compile.compiler.inductor_passes.how_many import best_of_combine
from farskip_compile.compiler.inductor_passes.micro_batches import cut_in_micro_batches
from farskip_compile.compiler.inductor_passes.without_drops import cut_without_drops, hand_on_pieces
from farskip_compile.costs.profile import HardwareProfile


class Cuts(Protocol):
    """What a plan says of it."""

    @property
    def pieces(self) -> PieceCount:
        """In how many pieces exchanges are cut."""

    @property
    def pieces_along(self) -> PiecesAlong:
        """What a piece of one without drops is."""

    @property
    def micro_batches(self) -> int:
        """In how many parts the batch is cut."""

    @property
    def skip(self) -> Collection[str]:
        """Names of passes to leave out."""

    @property
    def profile(self) -> HardwareProfile:
        """For estimates."""

    @property
    def strict(self) -> bool:
        """What can't be cut is an error."""


def cut_before_differentiation(module: fx.GraphModule, plan: Cuts) -> None:
    """Cut what `plan` says.

    Raises:
        UnsupportedPatternError: something can't be cut as it was asked for.
        VerificationError: what was cut does not compute the same.
    """
    cut_in_micro_batches(module, plan.micro_batches, plan.skip, strict=plan.strict)
    cut_without_drops(module, plan.pieces, plan.pieces_along, plan.skip, plan.profile, strict=plan.strict)
    module.recompile()


@dataclass(frozen=True)
class PartInPieces:
    """How the exchanges of a part of a model are cut in pieces."""

    plan: Cuts

    def cut(self, module: fx.GraphModule) -> None:
        """Cut those whose sizes data decides.

        Raises:
            UnsupportedPatternError: one of them can't be cut in the number of pieces that was asked for.
            VerificationError: what was cut does not compute the same.
        """
        plan = self.plan
        cut_without_drops(module, plan.pieces, plan.pieces_along, plan.skip, plan.profile, strict=plan.strict)
        module.recompile()

    def hand_on(self, module: fx.GraphModule) -> None:
        """Let pieces of tokens that come in go on to the exchanges of this part."""
        hand_on_pieces(module, self.plan.skip)
        module.recompile()

    def later(self, launch: fx.Node) -> int:
        """In how many pieces a combine will be after differentiation. Under "auto", that is estimated now: what leaves
        in flight leaves in as many."""
        if "pieces" in self.plan.skip:
            return 1
        return best_of_combine(self.plan.profile, launch) if self.plan.pieces == "auto" else self.plan.pieces
