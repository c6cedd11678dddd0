# SPDX-License-Identifier: Apache-2.0
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

from farskip_compile.base.choices import DistillRecipe, TrainingDtype
from farskip_compile.base.json_files import JsonReader
from farskip_compile.compiler.config import FarSkipConfig, resolve
from farskip_compile.errors import ConfigError
from farskip_compile.healing.causal.asking import MEMORY
from farskip_compile.passes.rewire.request import Connectivity, LayerRange

Objective = Literal["kl", "next_token"]
TeacherKind = Literal["copy", "cache"]
Compile = Literal["whole", "layers"]
AUTO: Literal["auto"] = "auto"
PAPER: Mapping[str, Any] = {
    "objective": "kl", "fold": False, "stream_weight": 0.0, "betas": (0.9, 0.95), "beta2_half_life": None,
    "final_learning_rate": 0.0,
}  # fmt: skip
"""What the paper's recipe fixes (arXiv 2511.11505, section 3.1). Its learning rate is 2e-5, the default; for some of
its models it is up to 8e-5, so that another number may be given."""

WITHOUT_EFFECT = ("output", "save_every", "resume", "tensorboard", "progress", "teacher_cache")
"""Options that say how a run is reported and kept, not what it computes."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Options of `self_distill`. Learning rate, schedule and loss are the paper's (arXiv 2511.11505, section 3.1); the
    batch is that of the data.

    Raises:
        ConfigError: an invalid value.
    """

    connectivity: Connectivity = "full"
    """The student's, as in `FarSkipConfig`."""
    layers: LayerRange = None
    """The student's, as in `FarSkipConfig`, both."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of the backend, such as `{"inner": "eager"}`."""
    compile: Compile = "whole"
    """`whole`: one graph. `layers`: each layer by itself (`farskip_compile.regional`), for the duration of the run; the
    function is the same. Needed where `fully_shard` (FSDP2) was called on layers."""

    recipe: DistillRecipe = "default"
    """`paper`: nothing but the paper's recipe; an option that is not a part of it is an error. `default`: that, with a
    second moment that forgets by tokens instead of steps (`beta2_half_life`), and with what is asked for here."""
    objective: Objective = "kl"
    """`kl`: KL(teacher || student) at each target token. `next_token`: cross-entropy with the text, without a teacher:
    the baseline that the paper calls SFT."""
    teacher: TeacherKind = "copy"
    """`copy`: frozen copies of the parameters, run at each step. `cache`: the original's `top_k` largest logits at each
    position, written to `teacher_cache` before the first step; then no copy is held."""
    top_k: int = 64
    """Logits of a cached teacher that are kept; the rest of its probability is one more outcome."""
    teacher_cache: Path | None = None
    """Folder of a cached teacher; None: `output / "teacher"`."""

    fold: bool = False
    """Repair what can be repaired in closed form before the first step (`farskip_compile.healing.fold`)."""
    fold_batches: int = 16
    """Batches of the data, on each rank, that it is fitted on: some hundred times as many tokens as the stream is
    wide, or more. They are trained on afterwards, too."""
    stream_weight: float = 0.0
    """Weight of the mismatch between the residual streams of student and teacher behind each layer, relative to the
    teacher's: the mean over layers of sum((s - t)^2) / sum(t^2), over positions with a target. It falls in a straight
    line to 0 at the last step. Needs a teacher that is a copy."""

    steps: int = 1000
    """Optimizer steps."""
    accumulate: int = 1
    """Batches of one step, on each rank."""
    learning_rate: float | Literal["auto"] = 2e-5
    """Of AdamW, after the warm-up. `auto`: that of the best of three short runs by held-out KL, each over 3 % of the
    steps, on the first batches, from the same weights: with 0.16 / (trained parameters) ** (1/3), half of it, and
    twice."""
    final_learning_rate: float = 0.0
    """At the last step, where the cosine ends; a fraction of `learning_rate`."""
    warm_up_steps: int = 0
    """Steps in which the learning rate rises from zero."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW; the second one is subject to `beta2_half_life`."""
    beta2_half_life: float | None = None
    """Target tokens, of all ranks, after which half of a squared gradient is forgotten, in place of `betas[1]`, which
    becomes 0.5 ** (tokens of a step / this). The first step counts. None: `betas[1]` in the paper's recipe; in the
    default one 7.1 million or a tenth of the run, whichever is less, but no second beta below `betas[1]`."""
    weight_decay: float = 0.0
    """Of AdamW, for matrices; norms and biases have none."""
    clip: float | None = 1.0
    """Largest norm of all gradients together; None: no limit."""
    precision: TrainingDtype = "float32"
    """`bfloat16`: autocast in the forward pass of both models; parameters stay as they are."""
    gradient_checkpointing: bool = False
    """Compute layers again in the backward pass instead of keeping what is inside of them; for models of transformers.
    The gradients are the same."""
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
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is unknown", way_out=f"one of {', '.join(get_args(choices))}"
                )
        for name, (kind, least) in _NUMBERS.items():
            value = getattr(self, name)
            if (value is None and name in ("patience", "clip", "beta2_half_life")) or (
                value == AUTO and name == "learning_rate"
            ):
                continue
            if not isinstance(value, kind) or isinstance(value, bool) or not least <= value < math.inf:
                what, wanted = ("count", "a whole number, at least") if kind is int else ("number", "finite, at least")
                raise ConfigError(f"{name}={value!r} is not a {what}", way_out=f"{wanted} {least}")
        for name in ("fold", "gradient_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} is neither true nor false", way_out="true or false")
        for name in ("output", "teacher_cache"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        object.__setattr__(self, "betas", tuple(self.betas))
        self._check_recipe()
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

    def _check_recipe(self) -> None:
        if self.recipe == "paper":
            for name, value in PAPER.items():
                if getattr(self, name) != value:
                    raise ConfigError(
                        f"{name}={getattr(self, name)!r} is not the paper's recipe, which has {value!r}",
                        way_out="recipe='default', or leave it out",
                    )
            if self.learning_rate == AUTO:
                raise ConfigError("the paper's recipe tries no learning rates", way_out="a number; the paper's is 2e-5")
        if self.beta2_half_life == 0:
            raise ConfigError("beta2_half_life=0 forgets everything", way_out="a number of tokens, or None")
        if self.stream_weight and (self.teacher == "cache" or self.objective != "kl"):
            which = "a cached teacher" if self.teacher == "cache" else "an objective without a teacher"
            raise ConfigError(
                f"{which} has no residual stream to match", way_out="teacher='copy', objective='kl'; or stream_weight=0"
            )

    @property
    def cache_folder(self) -> Path | None:
        """Where a cached teacher is."""
        if self.teacher_cache is not None or self.output is None:
            return self.teacher_cache
        return self.output / "teacher"

    def backend_config(self) -> FarSkipConfig:
        """What the student is compiled with."""
        asked: dict[str, Any] = {"connectivity": self.connectivity, "layers": self.layers}
        if self.stream_weight:  # the stream behind the last layer is an output, too
            asked["kinds"] = {**self.options.get("kinds", {}), "return": "final"}
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
        """The configuration with the options `data`, which are from `origin`.

        Raises:
            ConfigError: an unknown key, with the closest known one; or a wrong value.
        """
        JsonReader(origin).refuse_unknown(data, [entry.name for entry in dataclasses.fields(cls)])
        return cls(**data)


_CHOICES = {
    "objective": Objective,
    "teacher": TeacherKind,
    "precision": TrainingDtype,
    "recipe": DistillRecipe,
    "compile": Compile,
}
_NUMBERS: dict[str, tuple[Any, int]] = {
    **dict.fromkeys(
        ("top_k", "steps", "accumulate", "evaluate_every", "patience", "save_every", "logits_memory", "fold_batches"),
        (int, 1),
    ),
    **dict.fromkeys(("warm_up_steps", "seed"), (int, 0)),
    **dict.fromkeys(
        (
            "learning_rate",
            "final_learning_rate",
            "weight_decay",
            "least_improvement",
            "clip",
            "stream_weight",
            "beta2_half_life",
        ),
        (int | float, 0),
    ),
}
"""Numeric options: their type, and the least value."""
