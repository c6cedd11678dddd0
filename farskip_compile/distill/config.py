"""The options of a self-distillation: one frozen configuration, checked before anything runs.

Contract: `DistillConfig` holds every option; a wrong value is a `ConfigError` that names it. `digest` covers what
decides the result: a run is resumed only with an equal one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from farskip_compile.config import FarSkipConfig, resolve
from farskip_compile.distill.asking import MEMORY
from farskip_compile.errors import ConfigError
from farskip_compile.json_files import Reader
from farskip_compile.passes.rewire.request import Connectivity, LayerRange

Objective = Literal["kl", "next_token"]
Teacher = Literal["copy", "cache"]
Precision = Literal["float32", "bfloat16"]

WITHOUT_EFFECT = ("output", "save_every", "resume", "tensorboard", "progress", "teacher_cache")
"""Options that say how a run is reported and kept, not what it computes."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Options of `self_distill`. Learning rate, schedule and loss are the paper's (arXiv 2511.11505, section 3.1).

    Raises:
        ConfigError: an invalid value.
    """

    connectivity: Connectivity = "full"
    layers: LayerRange = None
    """The student's, as in `FarSkipConfig`, both."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of the backend, such as `{"inner": "eager"}`."""

    objective: Objective = "kl"
    """`kl`: KL(teacher || student) at each target token. `next_token`: cross-entropy with the text, without a teacher:
    the baseline that the paper calls SFT."""
    teacher: Teacher = "copy"
    """`copy`: frozen copies of the parameters, run at each step. `cache`: the original's `top_k` largest logits at each
    position, written to `teacher_cache` before the first step; then no copy is held."""
    top_k: int = 64
    """Logits of a cached teacher that are kept; the rest of its probability is one more outcome."""
    teacher_cache: Path | None = None
    """Folder of a cached teacher; None: `output / "teacher"`."""

    steps: int = 1000
    """Optimizer steps."""
    accumulate: int = 1
    """Batches of one step, on each rank."""
    learning_rate: float = 2e-5
    """Of AdamW, after the warm-up."""
    final_learning_rate: float = 0.0
    """At the last step, where the cosine ends; a fraction of `learning_rate`."""
    warm_up_steps: int = 0
    """Steps in which the learning rate rises from zero."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    """Of AdamW, for matrices; norms and biases have none."""
    clip: float | None = 1.0
    """Largest norm of all gradients together; None: no limit."""
    precision: Precision = "float32"
    """`bfloat16`: autocast in the forward pass of both models; parameters stay as they are."""
    logits_memory: int = MEMORY
    """Bytes that logits [positions, vocabulary] may take at a time, counted in float32 at least; a loss has a few
    such tensors. They are computed from hidden states for so many positions at a time."""
    seed: int = 0
    """Of dropout, and of what the data draws from torch's generator."""

    evaluate_every: int = 100
    """Steps between two evaluations on held-out batches."""
    patience: int | None = 20
    """Evaluations without a better held-out KL after which the run ends; None: it does not end early."""
    least_improvement: float = 0.0
    """Fraction by which the held-out loss must fall to count as better."""

    output: Path | None = None
    """Folder for states, metrics and the result; None: nothing is written, and the best weights are kept in memory."""
    save_every: int = 100
    """Steps between two states from which the run can continue."""
    resume: bool = True
    """Continue from the state in `output`, if there is one."""
    tensorboard: bool = False
    """Write metrics for TensorBoard, too."""
    progress: bool = True
    """Show a progress bar, on the first rank and on a terminal."""

    def __post_init__(self) -> None:
        for name, choices in (("objective", Objective), ("teacher", Teacher), ("precision", Precision)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is unknown", way_out=f"one of {', '.join(get_args(choices))}"
                )
        for name, (kind, least) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in ("patience", "clip"):
                continue
            if not isinstance(value, kind) or isinstance(value, bool) or not least <= value < math.inf:
                what, wanted = ("count", "a whole number, at least") if kind is int else ("number", "finite, at least")
                raise ConfigError(f"{name}={value!r} is not a {what}", way_out=f"{wanted} {least}")
        for name in ("output", "teacher_cache"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.teacher == "cache" and self.objective == "kl" and self.cache_folder is None:
            raise ConfigError(
                "a cached teacher needs a folder", way_out="output=..., or teacher_cache=..., or teacher='copy'"
            )
        if self.tensorboard and self.output is None:
            raise ConfigError("TensorBoard needs a folder", way_out="output=..., or tensorboard=False")
        if clash := {"connectivity", "layers", "manifest"} & {*self.options}:
            raise ConfigError(
                f"options hold {', '.join(sorted(clash))}", way_out="connectivity and layers are options of their own"
            )
        resolve(self.backend_config())

    @property
    def cache_folder(self) -> Path | None:
        """Where a cached teacher is."""
        if self.teacher_cache is not None or self.output is None:
            return self.teacher_cache
        return self.output / "teacher"

    def backend_config(self) -> FarSkipConfig:
        """What the student is compiled with."""
        asked = {"connectivity": self.connectivity, "layers": self.layers}
        return FarSkipConfig.from_options({**self.options, **asked})

    def digest(self) -> str:
        """Hash of all options that decide the result."""
        options = {
            entry.name: getattr(self, entry.name)
            for entry in dataclasses.fields(self)
            if entry.name not in (*WITHOUT_EFFECT, "options", "connectivity", "layers")
        }
        options["backend"] = self.backend_config().to_json()
        return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], origin: str = "self_distill") -> DistillConfig:
        """The configuration with these options, which are from `origin`.

        Raises:
            ConfigError: an unknown key, with the closest known one; or a wrong value.
        """
        Reader(origin).refuse_unknown(data, [entry.name for entry in dataclasses.fields(cls)])
        return cls(**data)


_NUMBERS: dict[str, tuple[Any, int]] = {
    **dict.fromkeys(
        ("top_k", "steps", "accumulate", "evaluate_every", "patience", "save_every", "logits_memory"), (int, 1)
    ),
    **dict.fromkeys(("warm_up_steps", "seed"), (int, 0)),
    **dict.fromkeys(
        ("learning_rate", "final_learning_rate", "weight_decay", "least_improvement", "clip"), (int | float, 0)
    ),
}
"""Numeric options: their type, and the least value."""
