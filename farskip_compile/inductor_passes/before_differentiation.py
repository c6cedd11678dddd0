"""What is cut before differentiation: the batch in parts, exchanges without drops in pieces.

In:    the module of a Dynamo graph, rewired or not; the plan.
Out:   its graph, cut.
Never: schedules anything; that is done after differentiation, when pieces are known by their notes.
"""

from __future__ import annotations

from torch import fx

from farskip_compile.inductor_passes import Plan
from farskip_compile.inductor_passes.micro_batches import cut_in_micro_batches
from farskip_compile.inductor_passes.without_drops import cut_without_drops


def cut_before_differentiation(module: fx.GraphModule, plan: Plan) -> None:
    """Cut what `plan` says.

    Raises:
        UnsupportedPatternError: something can't be cut as it was asked for.
        VerificationError: what was cut does not compute the same.
    """
    cut_in_micro_batches(module, plan.micro_batches, plan.skip, strict=plan.strict)
    cut_without_drops(module, plan.pieces, plan.pieces_along, plan.skip, plan.profile, strict=plan.strict)
    module.recompile()
