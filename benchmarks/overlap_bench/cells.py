# SPDX-License-Identifier: Apache-2.0
"""The grid of combinations of model, phase, routing, hosts and ratio, and the variants that are compared in each cell.

Contract: `deepseek_v3/prefill/balanced/2/0.5` is model/phase/routing/hosts/ratio of communication to compute. Cells
that differ only in the ratio form a group, measured by one launch of the ranks. `steps.py` makes the variants:

plain             the plain model, compiled by Inductor: torch.compile out of the box
inductor overlap  the same with Inductor's own overlap scheduling, on the graph (`inductor.py`)
inductor passes   the same with its passes on kernels
overlapped eager  the FarSkip form written by hand, in eager mode, as AMD trains it: async collectives, hooks that
                  wait for those of the backward pass, and an autograd engine with other priorities
chunked eager     the plain model, each exchange in two chunks by hand: what others write to overlap an unchanged model
micro-batches     the plain model on the batch in two halves, by hand: what serving engines do; eager
hand-written      the FarSkip form written by hand, compiled by Inductor
none              the plain model by our backend, connectivity "none": scheduled, not rewired
none, 2 pieces    as `none`, exchanges in two pieces; only under expert parallelism, like all in pieces
none, pieces      as `none`, in pieces="auto"
full              connectivity "full": rewired and scheduled
full, 2 pieces    as `full`, in two pieces
full, pieces      as `full`, in pieces="auto"
none, 2 batches   as `none`, the batch in two parts through the stack (micro_batches=2); only without drops, as the next
full, by token    as `full`, in two pieces of tokens, each from one layer's exchange into the next
lag2              connectivity "lag2": a layer of time for each exchange, without pieces
without P         as `full, pieces`, but for the pass P of the list `disable_passes` (`--ablation`, and no baselines)
plain, by layer   the layers of the plain model, each compiled by itself by Inductor: layer.compile(backend="inductor")
full, by layer    as `full`, by `farskip_compile.regional`; also `full, 2 pieces, by layer` (`regional.py` alone)
compute           like hand-written, with collectives that replay recorded results: the compute of the step
communication     the collectives of that step one after another, and nothing else

The last two are of the FarSkip form, which the bound is for: under tensor parallelism its backward pass has fewer
all-reduces than the plain model's, because Inductor merges those of the same gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

PREFILL, DECODE, TRAINING = "prefill", "decode", "training"
BALANCED, SKEWED = "balanced", "skewed"
LONG = "deepseek_v3-long"
"""DeepSeek-V3 style at a long context: most of its compute is attention."""
MODELS = ("deepseek_v3", "qwen3_moe", "llama4", LONG)
PHASES = (PREFILL, DECODE, TRAINING)
ROUTINGS = (BALANCED, SKEWED)
HOSTS = (2, 4)
RATIOS = (0.5, 1.0, 2.0)
FEWER_RATIOS = (0.5, 1.0)
"""With four hosts, which share the processor, and at a long context."""
SKEWED_RATIOS = (1.0,)
"""With skewed routing and no drops. Where matrices are cut among ranks, skew moves nothing between them."""
TENSOR_PARALLEL = ("llama4",)

PLAIN, OVERLAP, PASSES = "plain", "inductor overlap", "inductor passes"
EAGER, CHUNKED, MICRO, HAND = "overlapped eager", "chunked eager", "micro-batches", "hand-written"
NONE, FULL, LAG2 = "none", "full", "lag2"
NONE_2, FULL_2 = "none, 2 pieces", "full, 2 pieces"
NONE_CUT, FULL_CUT = "none, pieces", "full, pieces"
NONE_BATCHES, FULL_TOKENS = "none, 2 batches", "full, by token"
COMPUTE, COMMUNICATION = "compute", "communication"

ORDER = (
    *(PLAIN, OVERLAP, PASSES, EAGER, CHUNKED, MICRO, HAND),
    *(NONE, NONE_2, NONE_CUT, NONE_BATCHES, FULL, FULL_2, FULL_CUT, FULL_TOKENS, LAG2),
)
"""The order in tables: baselines, then ours."""
OURS: dict[str, dict[str, Any]] = {
    NONE: {"connectivity": "none"},
    FULL: {"connectivity": "full"},
    NONE_2: {"connectivity": "none", "pieces": 2},
    FULL_2: {"connectivity": "full", "pieces": 2},
    NONE_CUT: {"connectivity": "none", "pieces": "auto"},
    FULL_CUT: {"connectivity": "full", "pieces": "auto"},
    NONE_BATCHES: {"connectivity": "none", "micro_batches": 2},
    FULL_TOKENS: {"connectivity": "full", "pieces": 2, "pieces_along": "tokens"},
    LAG2: {"connectivity": "lag2"},
}
"""Options of our backend."""
CUT = (NONE_2, FULL_2, NONE_CUT, FULL_CUT)
BASELINES = ORDER[: ORDER.index(NONE)]
EXTRA = (NONE_2, FULL_2, LAG2)
"""Variants that only cells at `EXTRA_RATIOS` have."""
EXTRA_RATIOS = (1.0,)
DISABLED = ("pieces", "schedule_graph", "pin_waits", "pin_products", "schedule_kernels")
ABLATED: dict[str, dict[str, Any]] = {
    f"without {name}": {**OURS[FULL_CUT], "disable_passes": [name]} for name in DISABLED
}
"""Options of our backend without one pass of what is full, pieces."""
BACKEND = {**OURS, **ABLATED}
"""Options of all variants that are compiled by our backend."""
ABLATION = (PLAIN, HAND, FULL, FULL_CUT, *ABLATED)
"""The variants of an ablation."""
BY_LAYER, FULL_BY_LAYER, FULL_2_BY_LAYER = (f"{name}, by layer" for name in (PLAIN, FULL, FULL_2))
REGIONAL: dict[str, dict[str, Any]] = {FULL_BY_LAYER: OURS[FULL], FULL_2_BY_LAYER: OURS[FULL_2]}
"""Options of what `farskip_compile.regional` compiles."""
SELECTIONS = {
    "ablation": ABLATION,
    "regional": (PLAIN, HAND, BY_LAYER, FULL, FULL_2, *REGIONAL),
}
"""Other variants than the usual ones, by the benchmark that asks for them."""
TIMED = (*ORDER, *ABLATED, BY_LAYER, *REGIONAL)
"""All variants, in the order in tables."""
DROPLESS = (NONE_BATCHES, FULL_TOKENS)
"""Variants that need exchanges without drops, and the whole batch's tokens in one step: no decoding."""
EXPERT_PARALLEL = (CHUNKED, MICRO, *CUT, *DROPLESS)
"""Variants that need it."""
PROFILED = (OVERLAP, PASSES, *BACKEND, *REGIONAL)
"""Variants that depend on the hardware profile: another link needs another compile."""
LAG2_HAND, HALVES = "lag2 by hand", "halves"
"""For comparison only, in eager mode. Of a half of the batch, padded exchanges may drop other rows."""
COMPARED = (
    *((name, PLAIN) for name in (OVERLAP, PASSES, CHUNKED, NONE, NONE_2, NONE_CUT, NONE_BATCHES, BY_LAYER)),
    *((name, HAND) for name in (EAGER, FULL, FULL_2, FULL_CUT, FULL_TOKENS, *ABLATED, *REGIONAL)),
    (LAG2, LAG2_HAND),
    (MICRO, HALVES),
)
"""(variant, what it must equal)."""


class CellError(ValueError):
    """Text that does not name a cell."""


@dataclass(frozen=True, order=True)
class Group:
    """What one launch of the ranks measures, at several ratios."""

    model: str
    phase: str
    routing: str
    hosts: int

    def __str__(self) -> str:
        return f"{self.model}/{self.phase}/{self.routing}/{self.hosts}"


@dataclass(frozen=True, order=True)
class Cell:
    """One cell of the grid."""

    group: Group
    ratio: float

    def __str__(self) -> str:
        return f"{self.group}/{self.ratio:g}"

    @staticmethod
    def parse(text: str) -> Cell:
        """The cell of that name, or a `CellError`; the ratio may be any positive number, the rest is as in the grid."""
        try:
            model, phase, routing, hosts, ratio = text.split("/")
            cell = Cell(Group(model, phase, routing, int(hosts)), float(ratio))
        except ValueError:
            raise CellError(f"{text!r} is not a cell: write model/phase/routing/hosts/ratio, {EXAMPLE}") from None
        for value, allowed in (
            (model, MODELS),
            (phase, PHASES),
            (routing, ROUTINGS),
            (cell.group.hosts, HOSTS),
        ):
            if value not in allowed:
                raise CellError(f"{text!r} is not a cell: {value} is not one of {', '.join(map(str, allowed))}")
        if not 0 < cell.ratio < 100:
            raise CellError(f"{text!r} is not a cell: a ratio is positive and less than 100")
        return cell

    @property
    def place(self) -> tuple[float, ...]:
        """Sorts cells by hosts, phase, routing, model and ratio."""
        group = self.group
        known = ((PHASES, group.phase), (ROUTINGS, group.routing), (MODELS, group.model))
        return (group.hosts, *(values.index(value) for values, value in known), self.ratio)


EXAMPLE = "such as deepseek_v3/prefill/balanced/2/0.5"


def grid(
    models: Sequence[str] = MODELS,
    phases: Sequence[str] = PHASES,
    routings: Sequence[str] = ROUTINGS,
    hosts: Sequence[int] = HOSTS,
    ratios: Sequence[float] = RATIOS,
) -> list[Cell]:
    """All combinations that say something new (`ratios_of`), two hosts before four, balanced before skewed."""
    groups = [
        Group(model, phase, routing, count)
        for count in hosts
        for routing in routings
        for model in models
        for phase in phases
    ]
    return [Cell(group, ratio) for group in groups for ratio in ratios_of(group) if ratio in ratios]


def ratios_of(group: Group) -> Sequence[float]:
    """At which ratios the grid has a group; none: not at all.

    All phases of all models, balanced, on two hosts. Prefill and training alone of the long context, and with skewed
    routing, which is that of models without tensor parallelism on two hosts; prefill alone of four hosts.
    """
    usual = group.hosts == 2 and group.routing == BALANCED
    if usual and group.model != LONG:
        return RATIOS
    if usual:
        return () if group.phase == DECODE else FEWER_RATIOS
    if group.hosts == 2:
        return () if group.phase == DECODE or group.model in (LONG, *TENSOR_PARALLEL) else SKEWED_RATIOS
    return FEWER_RATIOS if group.phase == PREFILL and group.routing == BALANCED and group.model != LONG else ()


def quick() -> list[Cell]:
    """A small part of the grid: two of the cells under most targets."""
    return grid(MODELS[:1], (PREFILL, TRAINING), (BALANCED,), (2,), (0.5,))


def ablated() -> list[Cell]:
    """Where each pass is left out in turn."""
    return grid(MODELS[:1], (PREFILL, TRAINING), (BALANCED,), (2,), (1.0,))


def by_group(cells: Iterable[Cell]) -> dict[Group, list[float]]:
    """Ratios by group, in the order of the cells."""
    groups: dict[Group, list[float]] = {}
    for cell in dict.fromkeys(cells):
        groups.setdefault(cell.group, []).append(cell.ratio)
    return groups
