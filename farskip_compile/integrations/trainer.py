# SPDX-License-Identifier: Apache-2.0
"""transformers' `Trainer`, and what derives from it: each step rewired, each checkpoint with its manifest.

In:    a Trainer whose model is not compiled, possibly with adapters.
Out:   the same Trainer; its model, or the stack in it, is compiled in place by this backend.
Never: trains or evaluates in the original wiring: the model is guarded, so that this raises. Saves a model that it
       trained, or its adapters, without the manifest (`guard`), but for a model that is not of transformers and that
       the user saves (`save_model`): `write_manifest` is for these.

Why not `torch_compile_backend="farskip"`: accelerate takes only the backends of an enumeration of its own.

Algorithm:
1. When the Trainer is made, or training begins with another model (`model_init`): refuse a model that is compiled
   already, and what wraps or shards it so that it can't be compiled as one; guard, `prepare` and compile it in place.
   Of a Trainer whose loss is computed in a forward of its own (TRL's) that is the stack alone.
2. When a run is resumed: its rows must leave out what they left out before.
3. After each step, evaluation and prediction: check the evidence (`guard.evidence`).
4. After the first step: the configuration gets the manifest and the guard, so that every `save_pretrained` writes them,
   that of adapters too.
   At each checkpoint of the Trainer: the manifest beside the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from farskip_compile._compat.modules import is_compiled, unwrapped
from farskip_compile.base.extras import check_version
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.compiler.guard.checkpoints import guard_saves
from farskip_compile.compiler.guard.evidence import ModelEvidence
from farskip_compile.compiler.guard.forward import guard
from farskip_compile.errors import ConfigError, ManifestError, OriginalWiringError
from farskip_compile.manifest import Manifest, load_manifest, read_manifest, write_manifest
from farskip_compile.manifest.found import find_manifest
from farskip_compile.records.compile import CompileReport
from farskip_compile.tools.describe import from_report
from farskip_compile.tools.prepare.main import prepare

STEP, EVALUATION, PREDICTION = "a training step", "an evaluation", "a prediction"
WAY_OUT = "leave the model as the Trainer has it; without FarSkipCallback it trains as it is written"
REFUSAL = (
    "FarSkipCallback trains this model rewired, and it is about to run in its original wiring",
    "call the model itself, and not its forward, a part of it or a copy; farskip_compile.unguard(model) lets it run as "
    "it is written all the same",
)
RUN = "farskip"
"""Key of what the state of a run keeps, beside the state of callbacks."""


class _Rewired(TrainerCallback):
    """What the Trainer calls, in the order of the algorithm; `FarSkipCallback` is what users see of it."""

    def __init__(
        self, options: Mapping[str, Any], *, guard_checkpoints: bool, dynamic: bool | None, stack_alone: bool | None
    ) -> None:
        self.guard_checkpoints = guard_checkpoints
        self._options, self._dynamic, self._stack_alone = options, dynamic, stack_alone
        self._evidence: ModelEvidence | None = None
        self._model: nn.Module | None = None
        self._compiled: nn.Module | None = None
        self._mark: Callable[[Manifest], None] | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer is made: compile, so that an evaluation before any training runs rewired, too."""
        if (model := kwargs["model"]) is not None:
            self._attach(args, unwrapped(model))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training begins, or is resumed; with a model that is made for it (`model_init`), or that is known."""
        if (model := unwrapped(kwargs["model"])) is not self._model:
            self._attach(args, model)
        assert self._evidence is not None
        self._evidence.rows = _rows_of_run(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An optimizer step was taken."""
        evidence = self._check(kwargs["model"], STEP)
        if self._mark is not None:
            self._mark(self._manifest())
            self._mark = None
        if RUN not in state.stateful_callbacks:
            left_out = {name: list(terms) for name, terms in evidence.left_out.items()}
            state.stateful_callbacks[RUN] = {"args": {}, "attributes": {"left_out": left_out}}

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation has ended."""
        self._check(kwargs["model"], EVALUATION)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """A prediction has ended."""
        self._check(kwargs["model"], PREDICTION)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint was written, by one of the ranks."""
        if not args.should_save:
            return
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if not folder.is_dir():
            raise ManifestError(
                f"the checkpoint is not at {folder}, so its manifest can't be put beside it",
                way_out="train without a search for hyperparameters, which saves elsewhere",
            )
        write_manifest(self._manifest(), folder, guard=self.guard_checkpoints)

    def _manifest(self) -> Manifest:
        if self._model is None or self._evidence is None or not self._evidence.reports:
            raise ManifestError("nothing has run, so nothing was rewired yet", way_out="trainer.train() first")
        return from_report(self._evidence.reports[0], self._model)

    def _attach(self, args: Any, model: nn.Module) -> None:
        _refuse(args, model)
        manifest = self._given_manifest(model)
        if manifest is not None and not manifest.changes_function:
            raise ManifestError(
                f"{manifest} says that nothing is rewired, so there is nothing to assert",
                way_out="train without FarSkipCallback",
            )
        evidence = ModelEvidence(manifest, WAY_OUT)
        theirs = self._options.get("on_report")

        def on_report(report: CompileReport) -> None:
            evidence.reports.append(report)
            if theirs is not None:
                theirs(report)

        self._mark = guard_saves(model, guarded=self.guard_checkpoints)
        of_trl = any(cls.__module__.partition(".")[0] == "trl" for cls in type(args).__mro__)
        if of_trl:
            check_version("trl")
        compiled = _stack(model) if self._stack_alone or (self._stack_alone is None and of_trl) else model
        guard(compiled, None, refusal=REFUSAL)
        prepare(model)
        options = {**self._options, "manifest": manifest, "on_report": on_report}
        compiled.compile(backend="farskip", fullgraph=True, dynamic=self._dynamic, options=options)
        self._evidence, self._model, self._compiled = evidence, model, compiled

    def _given_manifest(self, model: nn.Module) -> Manifest | None:
        given = self._options.get("manifest")
        if isinstance(given, str | os.PathLike):
            return load_manifest(given)
        if isinstance(given, Mapping):
            return read_manifest(given, "the option manifest")
        config: Any = getattr(model, "config", None)
        if given is None and hasattr(config, "to_dict"):
            return find_manifest(config.name_or_path, config)
        return given

    def _check(self, model: nn.Module, phase: str) -> ModelEvidence:
        if self._evidence is None or self._compiled is None or unwrapped(model) is not self._model:
            raise OriginalWiringError(
                f"{phase} did not run rewired: FarSkipCallback has not seen the model of this Trainer",
                way_out="Trainer(..., callbacks=[FarSkipCallback()]) rather than add_callback after it was made, and "
                "one callback for each Trainer",
            )
        self._evidence.check(self._compiled, phase)
        return self._evidence


class FarSkipCallback(_Rewired):
    """`Trainer(..., callbacks=[FarSkipCallback(connectivity="full")])`.

    Args:
        guard_checkpoints: whether a checkpoint refuses to load where this package is not imported, as by
            `farskip_compile.save_manifest`.
        dynamic: as for `torch.compile`.
        stack_alone: compile the stack (`model.base_model`) and leave head and loss to Python, so that whatever a
            Trainer does there works. None: if it is one of TRL's, which give the model a forward that computes the loss
            in an operation of theirs that Dynamo can't trace.
        options: fields of `FarSkipConfig`. Without `manifest`, that of the checkpoint which the model was loaded from,
            if it has one.

    Raises:
        ConfigError: unknown or wrong options; from the Trainer, a model that is compiled already, or a run that was
            begun without this callback.
        OriginalWiringError: after a step, an evaluation or a prediction, that it may not have run rewired.
        FarSkipError: from the first step, that the model can't be rewired as asked.
    """

    def __init__(
        self,
        *,
        guard_checkpoints: bool = True,
        dynamic: bool | None = None,
        stack_alone: bool | None = None,
        **options: Any,
    ) -> None:
        check_version("transformers")
        config = FarSkipConfig.from_options(options)
        if not config.strict:
            raise ConfigError("strict=False trains a model as it is written", way_out="no FarSkipCallback")
        if config.connectivity == "none":
            raise ConfigError(
                "connectivity='none' changes no wiring, so there is nothing to assert",
                way_out='model.compile(backend="farskip", ...) before the Trainer is made, without FarSkipCallback',
            )
        super().__init__(options, guard_checkpoints=guard_checkpoints, dynamic=dynamic, stack_alone=stack_alone)

    @property
    def reports(self) -> tuple[CompileReport, ...]:
        """Of the graphs of the model that is trained, in the order in which they were compiled."""
        return tuple(self._evidence.reports) if self._evidence is not None else ()

    @property
    def steps(self) -> int:
        """Optimizer steps that ran rewired."""
        return self._evidence.calls.get(STEP, 0) if self._evidence is not None else 0

    @property
    def manifest(self) -> Manifest:
        """Of the model that is trained.

        Raises:
            ManifestError: nothing has run yet.
        """
        return self._manifest()

    def write_manifest(self, folder: str | os.PathLike[str]) -> Path:
        """Write the manifest beside what was saved without a configuration: after `trainer.save_model(folder)` of a
        model that is not of transformers.

        Args:
            folder: where it was saved.

        Returns:
            The file that holds the manifest.

        Raises:
            ManifestError: nothing has run yet, or it can't be written there.
        """
        return write_manifest(self.manifest, folder, guard=self.guard_checkpoints)


def _refuse(args: Any, model: nn.Module) -> None:
    """What compiles, copies or shards the model in a way of its own."""
    if args.torch_compile:
        raise ConfigError("torch_compile compiles the model with another backend", way_out="leave out torch_compile*")
    if args.n_gpu > 1:
        raise ConfigError(
            "with several GPUs in one process the Trainer copies the model to each of them for every step "
            "(DataParallel), and copies are not compiled",
            way_out="torchrun or accelerate launch, with a process for each GPU; or CUDA_VISIBLE_DEVICES=0",
        )
    if args.fsdp:
        raise ConfigError(
            "FSDP gathers the parameters of each layer outside of what is compiled, and FarSkip connects layers",
            way_out="farskip_compile.regional(model) before the Trainer is made, without FarSkipCallback "
            "(docs/layers.md); or DDP",
        )
    if is_compiled(model):
        raise ConfigError("the model is compiled already", way_out="give the Trainer the model as it was loaded")


def _stack(model: nn.Module) -> nn.Module:
    """The module that holds the layers, in adapters and head."""
    whole: Any = model
    inner = whole.get_base_model() if hasattr(model, "get_base_model") else whole
    stack = getattr(inner, "base_model", inner)
    if not isinstance(stack, nn.Module) or stack is inner:
        raise ConfigError(
            f"{type(inner).__name__} has no `base_model` that could be compiled without head and loss",
            way_out="FarSkipCallback(stack_alone=False) compiles the whole model",
        )
    return stack


def _rows_of_run(state: Any) -> Mapping[str, tuple[str, ...]] | None:
    """What the rows of a resumed run left out; None: it begins."""
    if state.global_step == 0:
        return None
    if (kept := state.stateful_callbacks.get(RUN)) is None:
        raise ConfigError(
            f"this run took its first {state.global_step} steps without FarSkipCallback, in the original wiring",
            way_out="load the checkpoint with from_pretrained and begin a new run; or resume without FarSkipCallback",
        )
    return {name: tuple(terms) for name, terms in kept["attributes"]["left_out"].items()}
