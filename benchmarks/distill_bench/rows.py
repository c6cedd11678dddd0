"""The rows of the experiment: what each starts from, what it learns from, and under which connectivity.

In:    a model's name and a scale.
Out:   `Row`s, each after those it needs.

    teacher      the original architecture, trained on the text
    unhealed     the teacher's weights under `full`, `attention`, `mlp`, as they are
    healed       the same, then a tenth of the teacher's tokens by KL to the teacher (or by the text alone); `longer`
                 takes three tenths, to show what more tokens would yield
    front        no weights: what each set of sub-blocks would do to the text, and hide
    plan         healed: the sub-blocks that free 80 % of what `full` frees, for the least damage
    scratch      `full`, trained on the text with the teacher's budget
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from distill_bench.scale import Scale
from farskip_compile.passes.rewire.request import Named

Learns = Literal["text", "teacher", "nothing"]
CONNECTIVITIES: tuple[Named, ...] = ("full", "attention", "mlp")
PARTS = (0.5, 0.75, 0.9)
LONGER = 3
"""Times the usual length of healing."""
FREED = 0.8
"""Fraction of the communication freed by `full` that the plan is to free."""


@dataclass(frozen=True)
class Row:
    """One training, or one evaluation."""

    model: str
    name: str
    """With its seed; unique per model."""
    kind: Literal["teacher", "unhealed", "healed", "scratch", "front"]
    learns: Learns
    connectivity: Named | Literal["plan"] = "full"
    layers: tuple[int, int] | None = None
    times: int = 1
    """Times the usual length of healing."""
    seed: int = 0
    needs: tuple[str, ...] = ()
    """Names of rows of the same model."""

    @property
    def key(self) -> str:
        """Unique in the experiment, and usable as a folder name."""
        return f"{self.model}-{self.name}"

    @property
    def label(self) -> str:
        """The name without the seed: rows with equal labels differ in their seed alone."""
        return self.name.partition("@")[0]


def rows_of(model: str, scale: Scale) -> list[Row]:
    """All rows of a model."""
    return list(_rows(model, scale))


def _rows(model: str, scale: Scale) -> Iterator[Row]:
    first = scale.seeds[0]
    original = ("teacher",)
    yield Row(model, "teacher", "teacher", "text", "none", seed=first)
    yield Row(model, "front", "front", "nothing", needs=original)
    for connectivity in CONNECTIVITIES:
        yield Row(model, f"unhealed-{connectivity}", "unhealed", "nothing", connectivity, needs=original)
    for learns, name in (("teacher", "healed"), ("text", "healed-by-text")):
        for seed in scale.seeds:
            yield Row(model, f"{name}-full@{seed}", "healed", learns, seed=seed, needs=original)  # type: ignore[arg-type]
    yield Row(model, "healed-full-longer", "healed", "teacher", times=LONGER, seed=first, needs=original)
    for connectivity in CONNECTIVITIES[1:]:
        yield Row(model, f"healed-{connectivity}", "healed", "teacher", connectivity, seed=first, needs=original)
    for part in PARTS:
        if scale.last(part)[0] == 0:
            continue  # with so few layers that is all of them
        name = f"healed-last-{100 * part:.0f}"
        yield Row(model, name, "healed", "teacher", layers=scale.last(part), seed=first, needs=original)
    yield Row(model, "healed-plan", "healed", "teacher", "plan", seed=first, needs=(*original, "front"))
    for seed in scale.seeds:
        yield Row(model, f"scratch@{seed}", "scratch", "text", seed=seed, needs=original)
