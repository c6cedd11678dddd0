# SPDX-License-Identifier: Apache-2.0
"""lm-eval's model `farskip`: a checkpoint in the wiring that its manifest describes.

In:    a checkpoint with a manifest, or a model of transformers in memory; lm-eval's arguments of its model `hf`.
Out:   log-likelihoods and generated text of the rewired model.
Never: runs the model in its original wiring: in log-likelihoods and in generation alike, that is an error. Takes a
       wrapper (`torch.compile(model)`, adapters, data parallelism): it would be rewired in log-likelihoods, where
       lm-eval calls the wrapper, and plain in generation, where it calls `generate` of what is inside.

Algorithm:
1. Refuse what was not tried: arguments that wrap or shard the model, several processes.
2. Read the manifest before any weight is loaded; guard the model, `prepare` it, compile it in place.
3. Compile with dynamic sizes. A size of one is a case of its own for torch, and transformers drops a mask without
   padding, so no batch has either: it is padded to two rows and two tokens, and a prompt by one masked token. That
   makes three graphs: log-likelihoods, prefill, decode steps; with Inductor a fourth one, for the first decode step,
   whose cache has the strides that the prefill's kernels chose.
4. After every batch, check the evidence (`guard.evidence`).
"""

from __future__ import annotations

import os
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from farskip_compile._compat.modules import is_compiled
from farskip_compile.compiler.guard.evidence import ModelEvidence
from farskip_compile.compiler.guard.forward import MARK, guard
from farskip_compile.errors import ConfigError, OriginalWiringError
from farskip_compile.healing.evaluation.found import needed_manifest
from farskip_compile.manifest.record import Manifest
from farskip_compile.tools.prepare.main import prepare

LOG_LIKELIHOODS = "log-likelihoods"
GENERATION = "generation"
LEAST = 2
"""Rows, and tokens of a row."""
WAY_OUT = "leave the model of a FarSkipLM as it is; to evaluate the original wiring, use lm-eval's own model: hf"
UNTRIED = ("peft", "delta", "autogptq", "gptqmodel", "gguf_file", "parallelize", "tp_plan")
"""Arguments of `HFLM` that put something around the model or change how it is loaded."""


@register_model("farskip")
class FarSkipLM(HFLM):
    """A checkpoint that runs rewired, or not at all.

    Args:
        pretrained: a checkpoint with a manifest: a folder or a name on the Hub; or a model of transformers, not
            compiled yet, with the manifest in its configuration or in the folder that it was loaded from.
        inner: the backend that compiles the rewired graph, as in `FarSkipConfig`.
        more: as for lm-eval's `HFLM`; without `device`, an accelerator if there is one.

    Raises:
        ManifestError: there is no manifest, or it is of another model.
        ConfigError: arguments that wrap or shard the model.
        OriginalWiringError: a wrapper; later, whatever did not run rewired.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | PreTrainedModel,
        *,
        inner: str = "inductor",
        device: str | None = None,
        subfolder: str = "",
        **more: Any,
    ) -> None:
        place = os.fspath(pretrained) if isinstance(pretrained, str | os.PathLike) else pretrained
        _refuse_untried(more)
        self.manifest: Manifest | None = None
        if not isinstance(place, str):
            _refuse_wrapper(place)
            self.manifest = needed_manifest(place.name_or_path or type(place).__name__, place.config)
        super().__init__(place, device=device or default_device(), subfolder=subfolder, **more)
        assert self.manifest is not None  # `_create_model` found it, or raised
        model: nn.Module = self.model
        _guard(model, self.manifest)
        prepare(model)
        self.evidence = ModelEvidence(self.manifest, WAY_OUT)
        options = {"manifest": self.manifest, "inner": inner, "on_report": self.evidence.reports.append}
        model.compile(backend="farskip", fullgraph=True, dynamic=True, options=options)

    def _create_model(self, pretrained: str, *args: Any, subfolder: str = "", **kwargs: Any) -> None:
        self.manifest = needed_manifest(pretrained, self.config, subfolder)
        super()._create_model(pretrained, *args, subfolder=subfolder, **kwargs)

    def _model_call(
        self, inps: torch.Tensor, attn_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [batch, tokens, vocabulary] of token ids [batch, tokens]."""
        if attn_mask is not None or labels is not None:
            raise ConfigError("an encoder with a decoder has not been tried", way_out="evaluate a decoder")
        rows, length = inps.shape
        padded = _rows(functional.pad(inps, (0, max(0, LEAST - length))))  # on the right: nothing earlier reads it
        logits: torch.Tensor = super()._model_call(padded)
        self.evidence.check(self.model, LOG_LIKELIHOODS)
        return logits[:rows, :length]

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], *, attention_mask: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        """Token ids [batch, prompt and what was generated] of prompts [batch, prompt], padded on the left."""
        rows, length = context.shape
        pads = 0 if length >= LEAST and not bool(attention_mask.all()) else 1
        padded = functional.pad(context, (pads, 0), value=self.tokenizer.pad_token_id)
        tokens: torch.Tensor = super()._model_generate(
            _rows(padded),
            max_length + pads,
            stop,
            attention_mask=_rows(functional.pad(attention_mask, (pads, 0))),
            **options,
        )
        self.evidence.check(self.model, GENERATION)
        if len(tokens) != max(rows, LEAST):
            raise ConfigError(
                f"{len(tokens)} texts for {max(rows, LEAST)} prompts",
                way_out="one text for a prompt: `repeats` of a task",
            )
        return tokens[:rows, pads:]


def default_device() -> str:
    """An accelerator if there is one. lm-eval's own default is `cuda` wherever it runs."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return str(found) if found is not None else "cpu"


def _rows(batch: torch.Tensor) -> torch.Tensor:
    """At least two rows: the last one again."""
    missing = LEAST - len(batch)
    return torch.cat([batch, batch[-1:].expand(missing, -1)]) if missing > 0 else batch


def _refuse_untried(arguments: dict[str, Any]) -> None:
    given = [name for name in UNTRIED if arguments.get(name)]
    if arguments.get("backend", "default") not in ("default", "causal"):
        given.append("backend")
    if given:
        raise ConfigError(
            f"{', '.join(given)} would wrap or shard the model, which has not been tried rewired",
            way_out="merge adapters and deltas into a checkpoint, and evaluate that on one device",
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "several processes would compile at different times, for batches of their own",
            way_out="evaluate in one process; share the tasks among separate runs",
        )


def _refuse_wrapper(model: object) -> None:
    if not isinstance(model, PreTrainedModel):
        raise OriginalWiringError(
            f"{type(model).__name__} is a wrapper, or not a model of transformers: lm-eval calls it for "
            "log-likelihoods, and `generate` of what is inside, in its original wiring, for generation",
            way_out="pass the model itself, not compiled: it is compiled in place here. Merge adapters into it first",
        )
    if is_compiled(model):
        raise ConfigError(
            "the model is compiled already, it may be in another wiring",
            way_out="pass it as it was loaded: it is prepared and compiled in place here",
        )


def _guard(model: nn.Module, manifest: Manifest) -> None:
    """From here on its forward runs rewired or raises, also if the checkpoint was saved without a guard."""
    replaced = [
        name or "the model"
        for name, module in model.named_modules()
        if (module is model or isinstance(module, PreTrainedModel))
        and "forward" in vars(module)
        and not hasattr(vars(module)["forward"], MARK)
    ]
    if replaced:
        raise ConfigError(
            f"the forward of {replaced[0]} was replaced by another function, which may run anything",
            way_out="pass the model as it was loaded, on one device",
        )
    guard(model, manifest.origin or None)
