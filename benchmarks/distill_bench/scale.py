"""How large the models are, how long they learn, and on how much text they are judged.

Contract: numbers only. Equal numbers, equal texts and equal versions give equal results: nothing here depends on how
fast the machine is.

    whole   a good hour on two cores: 1.3 million parameters, 6 layers, three seeds for the main rows
    quick   five minutes: 3 layers, one seed, text that comes with Python
    smoke   does it run? for tests
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
    """Optimizer steps of a teacher, and of a model that is trained from scratch."""
    learning_rate: float
    """Of these."""
    heal_learning_rate: float
    seeds: tuple[int, ...]
    """Of the main rows; all others have the first one alone."""
    judged: int
    """Sequences that a row is judged by, of each source."""
    validated: int
    """Other sequences, by which the best weights of a run are chosen."""
    new_tokens: int = 48
    """Of a text sample."""
    healed_part: float = 0.1
    """Of the teacher's steps."""
    batch: int = 8
    """Sequences of one step."""
    sequence: int = 128
    """Tokens of one sequence."""

    def heal_steps(self, times: int = 1) -> int:
        """Steps of healing, `times` as long as is the rule."""
        return times * max(2, round(self.steps * self.healed_part))

    def healing(self) -> str:
        """In words."""
        steps = self.heal_steps()
        return (
            f"{steps} steps of {self.batch} sequences of {self.sequence} tokens, learning rate "
            f"{self.heal_learning_rate:g} behind {self.warm_up(steps)} steps of warm-up"
        )

    def warm_up(self, steps: int) -> int:
        """Steps of `steps` in which the learning rate rises."""
        return min(100, steps // 10)

    def evaluate_every(self, steps: int) -> int:
        """Ten evaluations of a run."""
        return max(1, steps // 10)

    def last(self, part: float) -> tuple[int, int]:
        """The range of the last `part` of the layers."""
        return (min(self.layers - 1, round(self.layers * (1 - part))), self.layers - 1)


RANKS, TOKENS, PROFILE = 8, 4096, "h100"
"""Of the plan, at every scale: ranks with experts, tokens of each, and what they run on: there and with these widths
the communication is about as long as a third of the compute."""
MEMORY_INCREASE = 0.5
"""Of the plan: a model of so few layers holds little for long, and what is in flight weighs more than in a deep one."""

WHOLE = Scale("whole", 6, 96, 2048, 3400, 3e-3, 2e-3, (0, 1, 2), 256, 128)
QUICK = Scale("quick", 3, 64, 512, 500, 3e-3, 2e-3, (0,), 128, 32)
SMOKE = Scale("smoke", 4, 32, 300, 4, 3e-3, 2e-3, (0,), 8, 8, new_tokens=4, healed_part=0.5)
