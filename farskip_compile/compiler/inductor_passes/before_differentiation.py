# SPDX-License-Identifier: Apache-2.0
"""The cuts before differentiation: the batch in parts, exchanges without drops in pieces.

In:    the module of a Dynamo graph, rewired or not; the configuration.
Out:   its graph, cut.
Never: schedules anything; that is done after differentiation, when pieces are known by their notes.

The exchanges of a part of a model, which returns what is in flight, are cut before the part is cut off
(`PartInPieces`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from farskip_compile.compiler.config import Resolved
from farskip_compile.compiler.inductor_passes.how_many import best_of_combine
from farskip_compile.compiler.inductor_passes.micro_batches import cut_in_micro_batches
from farskip_compile.compiler.inductor_passes.plan import profile_to_schedule
from farskip_compile.compiler.inductor_passes.without_drops import cut_without_drops, hand_on_pieces
from farskip_compile.costs.profile import HardwareProfile


def cut_before_differentiation(module: fx.GraphModule, config: Resolved, profile: HardwareProfile) -> None:
    """Cut the batch and the exchanges of `module` as `config` asks.

    Raises:
        UnsupportedPatternError: something can't be cut as it was asked for.
        VerificationError: what was cut does not compute the same.
    """
    cut_in_micro_batches(module, config)
    cut_without_drops(module, config, profile)
    module.recompile()


@dataclass(frozen=True)
class PartInPieces:
    """How the exchanges of a part of a model are cut in pieces."""

    config: Resolved
    profile: HardwareProfile

    def cut(self, module: fx.GraphModule) -> None:
        """Cut the exchanges whose sizes data decides.

        Raises:
            UnsupportedPatternError: one of them can't be cut in the number of pieces that was asked for.
            VerificationError: what was cut does not compute the same.
        """
        cut_without_drops(module, self.config, self.profile)
        module.recompile()

    def hand_on(self, module: fx.GraphModule) -> None:
        """Let pieces of tokens that come in go on to the exchanges of this part."""
        hand_on_pieces(module, self.config)
        module.recompile()

    def later(self, launch: fx.Node) -> int:
        """Return in how many pieces a combine will be cut after differentiation.

        Under "auto", that is estimated now: what leaves in flight leaves in as many pieces.
        """
        if "pieces" in self.config.disable_passes:
            return 1
        return best_of_combine(self.profile, launch) if self.config.pieces == "auto" else self.config.pieces


def part_in_pieces(config: Resolved, module: fx.GraphModule) -> PartInPieces | None:
    """Return how to cut `module`, should it be a part of a model; None if nothing is to be cut."""
    if config.pieces == 1 or config.inner != "inductor":
        return None
    profile = profile_to_schedule(config, module)
    return PartInPieces(config, profile) if profile is not None else None
