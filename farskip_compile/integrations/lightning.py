# SPDX-License-Identifier: Apache-2.0
"""Lightning's `Trainer`: each batch rewired, each checkpoint with its manifest, which other code refuses to load.

In:    a LightningModule whose model is an attribute of it, compiled in place by this backend or not at all.
Out:   the same module; its model is compiled in place and guarded when the first batch comes.
Never: trains or evaluates a batch in the original wiring: the model is guarded, so that this raises. Writes a
       checkpoint without a manifest, also with `save_weights_only`. Changes names of parameters.

A checkpoint of Lightning is a dictionary with the state of the LightningModule, and `load_from_checkpoint` puts that
into a module without asking this package. So a submodule without parameters is added, `farskip`, whose extra state is
the manifest (`state`).

Algorithm:
1. Before a checkpoint is loaded: add that submodule. What is loaded into it is the manifest to go on with.
2. Before the first batch: guard the model; prepare and compile it in place, unless it is compiled already.
3. After each batch: check the evidence (`guard.evidence`), and once the manifest that was loaded.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from farskip_compile._compat.modules import is_compiled, unwrapped
from farskip_compile.base.extras import check_version
from farskip_compile.compiler.config import FarSkipConfig, resolve
from farskip_compile.compiler.guard.evidence import ModelEvidence
from farskip_compile.compiler.guard.forward import guard
from farskip_compile.errors import ConfigError, ManifestError
from farskip_compile.integrations.state import NAME, ManifestState
from farskip_compile.manifest import Manifest
from farskip_compile.records.compile import CompileReport, last_reports
from farskip_compile.tools.describe import from_report
from farskip_compile.tools.prepare.main import prepare

WAY_OUT = "leave the model as FarSkip has it; without the callback it trains as it is written"
REFUSAL = (
    "the model is trained in a FarSkip form, and is about to run in its original wiring, where its weights compute "
    "something else",
    "call the model itself, model(...), which is compiled in place, and not its forward; or, to run it like this all "
    "the same, farskip_compile.unguard(model)",
)


def _after(phase: str) -> Callable[..., None]:
    """What the Trainer calls after a batch of `phase`."""

    def after(self: FarSkip, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._check(phase)

    return after


class FarSkip(Callback):
    """`Trainer(callbacks=[FarSkip(connectivity="full")])`.

    Args:
        model: name of the attribute of the LightningModule that holds the model, with dots for attributes of it.
        options: fields of `FarSkipConfig`. None are taken where the model is compiled already, by
            `self.model.compile(backend="farskip", ...)`: its own hold. A checkpoint that is resumed says `manifest`.

    Raises:
        ConfigError: unknown or wrong options; before the first batch, that the attribute is missing, or is
            not a model that can be compiled in place.
        OriginalWiringError: after a batch, that it may not have run rewired.
        ManifestError: a checkpoint is for another form, or is written before any batch ran.
        FarSkipError: the model can't be rewired as asked.
    """

    def __init__(self, model: str = "model", **options: Any) -> None:
        check_version("lightning")
        if not FarSkipConfig.from_options(options).strict:
            raise ConfigError("strict=False trains a model as it is written", way_out="no FarSkip callback")
        self.name = model
        self._options = options
        self._state = ManifestState(lambda: self.manifest if self.batches else None)
        self._evidence: ModelEvidence | None = None
        self._model: nn.Module | None = None
        self._manifest: Manifest | None = None
        self._before: tuple[CompileReport, ...] | None = None
        """Reports that are not looked at, of a model that others compiled; None: FarSkip compiled it."""

    @property
    def batches(self) -> dict[str, int]:
        """How many ran rewired: of `training`, `validation`, `testing`, `prediction`."""
        return dict(self._evidence.calls) if self._evidence is not None else {}

    @property
    def manifest(self) -> Manifest:
        """Of the model that is trained.

        Raises:
            ManifestError: no batch has run yet.
        """
        if self._manifest is None:
            if self._evidence is None or self._model is None or not self._evidence.reports:
                raise ManifestError("no batch has run, so nothing was rewired yet", way_out="trainer.fit(...) first")
            self._manifest = from_report(self._evidence.reports[0], self._model)
        return self._manifest

    def _add_state(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        there = getattr(pl_module, NAME, None)  # 1
        if there is not None and not isinstance(there, ManifestState):
            raise ConfigError(
                f"the LightningModule has an attribute {NAME!r}, the name under which checkpoints keep the manifest",
                way_out="another name for that attribute",
            )
        setattr(pl_module, NAME, self._state)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = self._found(pl_module)
        if model is self._model:  # 2
            return
        if is_compiled(model):
            self._begin_compiled(model)
            return
        options = dict(self._options)
        if self._state.loaded is not None:
            options["manifest"] = self._state.loaded
        config = FarSkipConfig.from_options(options)
        evidence = ModelEvidence(
            resolve(config).manifest, WAY_OUT
        )  # raises where the checkpoint contradicts the options

        def on_report(report: CompileReport) -> None:
            evidence.reports.append(report)
            if config.on_report is not None:
                config.on_report(report)

        guard(model, None, refusal=REFUSAL)
        prepare(model)
        model.compile(backend="farskip", fullgraph=True, options={**options, "on_report": on_report})
        self._evidence, self._model, self._manifest, self._before = evidence, model, None, None

    def _begin_compiled(self, model: nn.Module) -> None:
        """Of a model that others compiled; what was loaded is compared after the first batch."""
        if self._options:
            raise ConfigError(
                f"`{self.name}` is compiled already, and FarSkip is given {', '.join(self._options)}",
                way_out="give the options to one of them",
            )
        guard(model, None, refusal=REFUSAL)
        # else Dynamo runs what it compiled earlier, be it of another model like this one, and reports nothing
        torch.compiler.reset()
        self._before = last_reports()
        self._evidence, self._model, self._manifest = ModelEvidence(None, WAY_OUT), model, None

    def _found(self, pl_module: LightningModule) -> nn.Module:
        try:
            model = operator.attrgetter(self.name)(pl_module)
        except AttributeError as error:
            raise ConfigError(
                f"{type(pl_module).__name__} has no `{self.name}` when the first batch comes",
                way_out="FarSkip(model=NAME): the attribute that holds the model",
            ) from error
        if not isinstance(model, nn.Module) or unwrapped(model) is not model:
            raise ConfigError(
                f"`{self.name}` is a {type(model).__name__}, which is not a model that is compiled in place",
                way_out=f'self.{self.name}.compile(backend="farskip", fullgraph=True), or leave that to FarSkip',
            )
        return model

    def _check(self, phase: str) -> None:
        assert self._evidence is not None
        assert self._model is not None
        if self._before is not None:  # 3
            seen, now = set(map(id, self._before)), last_reports()  # kept, so that no id comes again
            new = [one for one in now if id(one) not in seen]
            self._before = now
            self._evidence.reports += [one for one in new if self._is_ours(one)]
        self._evidence.check(self._model, phase)
        self._state.compare(self.manifest)

    def _is_ours(self, report: CompileReport) -> bool:
        """Whether a report is of a graph of the model: with its parameters, or without any."""
        assert self._model is not None
        try:
            from_report(report, self._model)
        except ManifestError:
            return not report.sub_block_parameters
        return True

    def _refuse_early(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        _ = self.manifest

    # What the Trainer calls, in this order

    setup = _add_state
    on_fit_start = on_validation_start = on_test_start = on_predict_start = _begin
    on_train_batch_end = _after("training")
    on_validation_batch_end = _after("validation")
    on_test_batch_end = _after("testing")
    on_predict_batch_end = _after("prediction")
    on_save_checkpoint = _refuse_early
