# SPDX-License-Identifier: Apache-2.0
"""The student: the model that is trained, in its FarSkip form.

In:    a model as written, and a configuration.
Out:   `Student`: what is called, compiled as a whole or layer by layer; the model as it was written, for a while or
       for good.
Never: a model whose layers keep other forwards than their own after `undo`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from farskip_compile.compiler.backend import backend
from farskip_compile.errors import PartialModelError
from farskip_compile.healing.causal.fully_sharded import units
from farskip_compile.healing.distill.config import DistillConfig
from farskip_compile.tools.regional import Regional, regional

BY_LAYERS = 'compile="layers"'


def check_units(model: nn.Module, config: DistillConfig) -> None:
    """A model that is compiled as a whole may be a unit of FSDP2, but hold none.

    Raises:
        PartialModelError: it does.
    """
    if config.compile == "whole" and (inner := [unit for unit in units(model) if unit is not model]):
        raise PartialModelError(
            f"fully_shard was called on {len(inner)} modules inside of the model, such as {type(inner[0]).__name__}: "
            "their parameters are gathered in hooks that Dynamo does not trace, so the model is not one graph",
            way_out=f"{BY_LAYERS}; or fully_shard on the root alone",
        )


class Student:
    """See the module."""

    def __init__(self, model: nn.Module, config: DistillConfig) -> None:
        self.compiled: Any
        """What is called as the model is."""
        self._regional: Regional | None = None
        if config.compile == "layers":
            asked: dict[str, Any] = {"connectivity": config.connectivity, "layers": config.layers}
            try:
                self._regional = regional(model, **asked, **config.options)
            except PartialModelError as error:
                raise PartialModelError(error.reason, way_out='compile="whole"', where=error.where) from error
            self.compiled = model
        else:
            self.compiled = torch.compile(model, backend=backend(config.backend_config()), fullgraph=True)

    def as_written(self) -> AbstractContextManager[None]:
        """Within a `with`, the model itself, not `compiled`, runs in its original form."""
        return self._regional.as_written() if self._regional is not None else nullcontext()

    def undo(self) -> None:
        """Put the model back as it was."""
        if self._regional is not None:
            self._regional.undo()
