# SPDX-License-Identifier: Apache-2.0
"""What `farskip heal` is asked for: one frozen record, checked before anything is read.

In:    options as the command has them.
Out:   `HealSettings`; a wrong value is a `ConfigError` that names the option.
Never: reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from farskip_compile.base.choices import ConnectivityName, HealRecipe, Inner, LossOn, TrainingDtype
from farskip_compile.errors import ConfigError
from farskip_compile.healing.distill.config import AUTO
from farskip_compile.healing.texts.documents import Format
from farskip_compile.passes.rewire.request import LayerRange

LEAST_HELD_OUT = 4
"""Sequences: two in each half, so that a standard error is known."""


@dataclass(frozen=True, kw_only=True)
class HealSettings:
    """Options of `farskip heal`.

    Raises:
        ConfigError: an impossible value, or two that exclude each other.
    """

    checkpoint: Path
    """A folder from `save_pretrained`, with its tokenizer."""
    data: tuple[Path, ...]
    """Training text (`farskip_compile.healing.texts.documents`)."""
    out: Path

    held_out: tuple[Path, ...] | None = None
    held_out_fraction: float | None = None
    """Of the documents of `data`, by the hash of their content; 0.02 where there is no `held_out`."""
    held_out_sequences: int = 256
    """At most; spread over all held-out text."""
    format: Format | None = None
    text_field: str | None = None
    loss_on: LossOn | None = None
    allow_overlap: bool = False
    sequence_length: int = 512

    connectivity: ConnectivityName = "full"
    layers: LayerRange = None
    budget: float | None = None
    """Rewire the rows that hide most communication with at most this damage: held-out KL in nats per token."""
    free: float | None = None
    """Rewire the rows that do least damage and free this share of what all rows free."""
    hardware: str | None = None
    """Profile of an accelerator, for what rewiring brings and for `budget` and `free`."""
    ep: int = 8
    tp: int = 1
    phase: str = "prefill"

    recipe: HealRecipe = "best"
    tokens: int | None = None
    """Target tokens to train on; None: all of the training text once."""
    batch_size: int = 2
    accumulate: int = 1
    learning_rate: float | Literal["auto"] | None = None
    """None: the recipe's."""
    fold: bool | None = None
    stream_weight: float | None = None
    """None, both: the recipe's."""
    dtype: TrainingDtype = "float32"
    """Of the parameters."""
    precision: TrainingDtype = "float32"
    gradient_checkpointing: bool = False
    seed: int = 0
    device: str | None = None
    """None: an accelerator if there is one."""
    inner: Inner = "inductor"
    """Compiles the rewired graphs."""

    def __post_init__(self) -> None:
        for impossible, reason, way_out in self._checks():
            if impossible:
                raise ConfigError(reason, way_out=way_out)

    @property
    def fraction(self) -> float | None:
        """Of the documents of `data` that are held out; None: `held_out` is."""
        return None if self.held_out is not None else self.held_out_fraction or 0.02

    @property
    def chooses_rows(self) -> bool:
        """Whether rows are chosen by what they hide."""
        return self.budget is not None or self.free is not None

    def _checks(self) -> Iterator[tuple[bool, str, str]]:
        """(whether this is impossible, why, a way out)."""
        yield not self.data, "there is no training text", "--data FILES"
        both = self.held_out is not None and self.held_out_fraction is not None
        yield both, "--held-out and --held-out-fraction both say what is held out", "one of them"
        for name in ("sequence_length", "batch_size", "accumulate", "tokens"):
            value, least = getattr(self, name), 2 if name == "sequence_length" else 1
            option = f"--{name.replace('_', '-')}"
            yield value is not None and value < least, f"{option} {value} is not a count", f"at least {least}"
        wrong = self.held_out_sequences < LEAST_HELD_OUT
        yield wrong, f"--held-out-sequences {self.held_out_sequences} can't be halved", f"at least {LEAST_HELD_OUT}"
        choices = (
            ("recipe", get_args(HealRecipe)),
            ("dtype", get_args(TrainingDtype)),
            ("precision", get_args(TrainingDtype)),
        )
        for name, known in (*choices, ("connectivity", get_args(ConnectivityName)), ("inner", get_args(Inner))):
            value = getattr(self, name)
            yield value not in known, f"--{name} {value} is unknown", f"one of {', '.join(known)}"
        yield self.connectivity == "none", "--connectivity none rewires nothing", "full, or another one"
        rate = self.learning_rate
        wrong = rate is not None and rate != AUTO and not 0 < float(rate) < math.inf
        yield wrong, f"--learning-rate {rate} is not a rate", "a number above 0, or auto"
        yield from self._choice_checks()

    def _choice_checks(self) -> Iterator[tuple[bool, str, str]]:
        both = self.budget is not None and self.free is not None
        yield both, "--budget and --free both say which rows to rewire", "one of them"
        wrong = self.budget is not None and not 0 < self.budget < math.inf
        yield wrong, f"--budget {self.budget} is not a KL in nats per token", "such as 0.1"
        wrong = self.free is not None and not 0 < self.free <= 1
        yield wrong, f"--free {self.free} is not a share", "such as 80%"
        missing = self.chooses_rows and self.hardware is None
        option = "--free" if self.free is not None else "--budget"
        yield missing, f"{option} needs to know what communication takes", "--hardware h100 --ep 8, or another profile"
