"""How large the models are, how long they train, and on how much text they are judged.

Contract: numbers only. Equal numbers, texts and versions give equal results: nothing depends on the speed of the
machine.

    whole   a good hour on two cores: 1.3 million parameters, 6 layers, three seeds for the main rows
    quick   five minutes: 3 layers, one seed, text that ships with Python
    smoke   a few steps, for tests
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """See the module."""

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

    def warm_up(self, steps: int) -> int:
        """How many of `steps` steps are warm-up."""
        return min(100, steps // 10)

    def evaluate_every(self, steps: int) -> int:
        """Steps between evaluations: ten per run."""
        return max(1, steps // 10)

    def last(self, part: float) -> tuple[int, int]:
        """The last `part` of the layers, as a range."""
        return (min(self.layers - 1, round(self.layers * (1 - part))), self.layers - 1)


RANKS, TOKENS, PROFILE = 8, 4096, "h100"
"""For the plan, at every scale: ranks with experts, tokens of each, and the hardware. With these widths communication
takes about a third as long as compute."""
MEMORY_INCREASE = 0.5
"""For the plan: in a model of so few layers, what is in flight weighs more than in a deep one."""

WHOLE = Scale("whole", 6, 96, 2048, 3400, 3e-3, 2e-3, (0, 1, 2), 256, 128)
QUICK = Scale("quick", 3, 64, 512, 500, 3e-3, 2e-3, (0,), 128, 32)
SMOKE = Scale("smoke", 4, 32, 300, 4, 3e-3, 2e-3, (0,), 8, 8, new_tokens=4, healed_part=0.5)
