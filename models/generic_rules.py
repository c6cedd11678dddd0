# SPDX-License-Identifier: Apache-2.0
"""The terms that each sub-block leaves out, for the eager oracle: from order and kinds of the sub-blocks alone.

Contract: `ForwardEvents` holds the events of one forward pass; `terms_to_leave_out` returns the labels of terms for
each sub-block that leaves out some. Nothing of the compiler is used.

Rules: attention leaves out the routed experts of the previous layer (full, attention, lag2), or all of its feed-forward
(ladder, arXiv 2501.06589); experts and dense layers the attention of their own layer (full, mlp, lag2, ladder), and
experts the routed ones of the previous layer, too (lag2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from farskip_compile.base.choices import ConnectivityName
from farskip_compile.models.sub_blocks import SubBlockModule


@dataclass
class ForwardEvents:
    """The events of one forward pass."""

    order: list[SubBlockModule] = field(default_factory=list)
    """Sub-blocks in the order in which they begin."""
    inside: list[SubBlockModule] = field(default_factory=list)
    reads: int = 0
    """Reads of the stream since the last sub-block ended."""
    held: frozenset[str] = frozenset()
    """Labels of the terms that reads of the stream since the last sub-block held."""
    holds: dict[SubBlockModule, frozenset[str]] = field(default_factory=dict)
    """Labels of the terms that each sub-block's reads hold."""
    sharing: set[SubBlockModule] = field(default_factory=set)
    """Sub-blocks that began without a read: they share that of the previous sub-block."""
    seen: set[str] = field(default_factory=set)
    """Names of sub-blocks that added to the stream before it was read."""
    behind: set[SubBlockModule] = field(default_factory=set)
    """Smaller modules on the output of a sub-block, such as a convolution of it: no sub-blocks."""
    quiet: bool = False
    """A sub-block runs a second time, to determine its kind."""


def terms_to_leave_out(
    run: ForwardEvents, connectivity: ConnectivityName, layers: tuple[int, int] | None
) -> dict[SubBlockModule, frozenset[str]]:
    """Return the labels that each sub-block does not read, and set the layer of each.

    Raises:
        NotImplementedError: some experts are beside a whole layer, others are not; or a mixer shares the read of a
            sub-block before it.
    """
    routed = [block for block in run.order if block.kind == "moe"]
    shortcut = [block for block in routed if _is_shortcut(run, block)]
    if (shortcut and shortcut == routed) or connectivity == "none":
        return {}  # overlapped by design
    if shortcut:
        raise NotImplementedError(f"{shortcut[0].name} is a shortcut MoE, others are not")
    for before, block in pairwise(run.order):
        if block in run.sharing and block.kind == "mixer":
            raise NotImplementedError(f"{before.name} and {block.name} share one read, the mixer second")
    left_out: dict[SubBlockModule, frozenset[str]] = {}
    since_mixer: list[SubBlockModule] = []
    routed_before = frozenset[str]()
    mixer: SubBlockModule | None = None
    layer = 0
    for position, block in enumerate(run.order):
        layer += block.kind == "mixer" and position > 0
        block.layer = layer
        if block.kind == "mixer":
            routed_before = _labels([b for b in since_mixer if b.kind == "moe"], "routed", "whole")
            labels = _labels(since_mixer, "routed", "shared", "whole") if connectivity == "ladder" else routed_before
            wanted = connectivity != "mlp"
            mixer, since_mixer = block, []
        else:
            labels = _labels([mixer] if mixer is not None else [], "whole")
            labels |= routed_before if connectivity == "lag2" and _reads_with_experts(run, position) else frozenset()
            wanted = connectivity != "attention"
            since_mixer.append(block)
        if wanted and (layers is None or layers[0] <= layer <= layers[1]):
            left_out[block] = labels
    return left_out


def _reads_with_experts(run: ForwardEvents, position: int) -> bool:
    """Return whether a sub-block is a MoE, or shares its read with one: shared experts beside it."""
    first = position
    while first > 0 and run.order[first] in run.sharing:
        first -= 1
    last = position + 1
    while last < len(run.order) and run.order[last] in run.sharing:
        last += 1
    return any(block.kind == "moe" for block in run.order[first:last])


def _labels(blocks: list[SubBlockModule], *parts: str) -> frozenset[str]:
    return frozenset(f"{block.name} {part}" for block in blocks for part in parts)


def _is_shortcut(run: ForwardEvents, moe: SubBlockModule) -> bool:
    """Return whether the next mixer reads the stream before the MoE's output is added."""
    later = run.order[run.order.index(moe) + 1 :]
    mixer = next((block for block in later if block.kind == "mixer"), None)
    return mixer is not None and not any(label.startswith(f"{moe.name} ") for label in run.holds[mixer])
