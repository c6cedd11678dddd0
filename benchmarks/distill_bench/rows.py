"""The experiment: its scales, and its rows. What each row starts from, learns from, and under which connectivity.

In:    a model's name and a scale.
Out:   `Row`s, each after those it needs.
Never: depends on the speed of the machine: equal numbers, texts and versions give equal results.

    whole        a good hour on two cores: 1.3 million parameters, 6 layers, three seeds for the main rows
    quick        ten minutes: 3 layers, one seed, text that ships with Python; `lag2` and `ladder`, too
    smoke        a few steps, for tests

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

from farskip_compile.passes.rewire.request import Named

Learns = Literal["text", "teacher", "nothing"]
CONNECTIVITIES: tuple[Named, ...] = ("full", "attention", "mlp")
PARTS = (0.5, 0.75, 0.9)
LONGER = 3
"""Times the usual length of healing."""
FREED = 0.8
"""Fraction of the communication freed by `full` that the plan is to free."""
RANKS, TOKENS, PROFILE = 8, 4096, "h100"
"""For the plan, at every scale: ranks with experts, tokens of each, and the hardware. With these widths communication
takes about a third as long as compute."""
MEMORY_INCREASE = 0.5
"""For the plan: in a model of so few layers, what is in flight weighs more than in a deep one."""


@dataclass(frozen=True)
class Scale:
    """How large the models are, how long they train, and on how much text they are judged."""

    name: str
    layers: int
    hidden: int
    vocabulary: int
    steps: int
    """Optimizer steps of a teacher, and of a model trained from scratch."""
    learning_rate: float
    """For these steps."""
    heal_learning_rate: float
    seeds: tuple[int, ...]
    """For the main rows; all others use the first one."""
    judged: int
    """Sequences of each source that a row is judged by."""
    validated: int
    """Other sequences, by which the best weights of a run are chosen."""
    new_tokens: int = 48
    """Tokens of a text sample."""
    healed_part: float = 0.1
    """Steps of healing over the teacher's."""
    batch: int = 8
    """Sequences per step."""
    sequence: int = 128
    """Tokens per sequence."""
    connectivities: tuple[Named, ...] = CONNECTIVITIES

    def heal_steps(self, times: int = 1) -> int:
        """Steps of healing, `times` as long as usual."""
        return times * max(2, round(self.steps * self.healed_part))

    def healing(self) -> str:
        """Healing in words."""
        steps = self.heal_steps()
        return (
            f"{steps} steps of {self.batch} sequences of {self.sequence} tokens, learning rate "
            f"{self.heal_learning_rate:g} after {self.warm_up(steps)} steps of warm-up"
        )

    @staticmethod
    def warm_up(steps: int) -> int:
        """How many of `steps` steps are warm-up."""
        return min(100, steps // 10)

    def last(self, part: float) -> tuple[int, int]:
        """The last `part` of the layers, as a range."""
        return (min(self.layers - 1, round(self.layers * (1 - part))), self.layers - 1)


WHOLE = Scale("whole", 6, 96, 2048, 3400, 3e-3, 2e-3, (0, 1, 2), 256, 128)
QUICK = Scale("quick", 3, 64, 512, 500, 3e-3, 2e-3, (0,), 128, 32, connectivities=(*CONNECTIVITIES, "lag2", "ladder"))
SMOKE = Scale("smoke", 4, 32, 300, 4, 3e-3, 2e-3, (0,), 8, 8, new_tokens=4, healed_part=0.5)


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
    return list(_rows(model, scale))


def _rows(model: str, scale: Scale) -> Iterator[Row]:
    first = scale.seeds[0]
    original = ("teacher",)
    yield Row(model, "teacher", "teacher", "text", "none", seed=first)
    yield Row(model, "front", "front", "nothing", needs=original)
    for connectivity in scale.connectivities:
        yield Row(model, f"unhealed-{connectivity}", "unhealed", "nothing", connectivity, needs=original)
    for learns, name in (("teacher", "healed"), ("text", "healed-by-text")):
        for seed in scale.seeds:
            yield Row(model, f"{name}-full@{seed}", "healed", learns, seed=seed, needs=original)  # type: ignore[arg-type]
    yield Row(model, "healed-full-longer", "healed", "teacher", times=LONGER, seed=first, needs=original)
    for connectivity in scale.connectivities[1:]:
        yield Row(model, f"healed-{connectivity}", "healed", "teacher", connectivity, seed=first, needs=original)
    for part in PARTS:
        if scale.last(part)[0] == 0:
            continue  # with so few layers that is all of them
        name = f"healed-last-{100 * part:.0f}"
        yield Row(model, name, "healed", "teacher", layers=scale.last(part), seed=first, needs=original)
    yield Row(model, "healed-plan", "healed", "teacher", "plan", seed=first, needs=(*original, "front"))
    for seed in scale.seeds:
        yield Row(model, f"scratch@{seed}", "scratch", "text", seed=seed, needs=original)
