# SPDX-License-Identifier: Apache-2.0
"""Recording of outputs by transformers, for layers that are compiled by themselves too.

Contract: hooks inside of a layer ask a context variable whether to record, which Dynamo can't trace. transformers keeps
a plain copy of the variable for models that are compiled as a whole; `let_layers_record` makes it keep the copy for
layers that are compiled by themselves too, until the last model that asked is undone. All threads share the copy.
Checked by running with transformers 5.24.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

MODULE = "transformers.utils.output_capturing"
COLLECTOR = "_active_collector"
USERS = "farskip_users"
"""The attribute of the collector that counts the models whose layers record."""


def let_layers_record() -> Callable[[], None]:
    """Let hooks in compiled layers see what is to be recorded. Return the way back."""
    collector = getattr(sys.modules.get(MODULE), COLLECTOR, None)
    if collector is None or not hasattr(collector, "context_var"):  # not loaded, or recorded in another way
        return lambda: None
    if not getattr(collector, USERS, 0):
        collector.__class__ = _mirrored(type(collector))
    setattr(collector, USERS, getattr(collector, USERS, 0) + 1)

    def undo() -> None:
        setattr(collector, USERS, getattr(collector, USERS) - 1)
        if not getattr(collector, USERS):
            collector.__class__ = type(collector).__base__

    return undo


def _mirrored(plain: Any) -> Any:
    class Mirrored(plain):
        """A collector with a copy that a compiled layer can read."""

        def get(self) -> Any:
            return self.global_var if torch.compiler.is_compiling() else super().get()

        def set(self, value: Any) -> Any:
            token = super().set(value)
            self.global_var = value
            return token

        def reset(self, token: Any) -> None:
            super().reset(token)
            if not torch.compiler.is_compiling():  # a model that is compiled as a whole keeps its own copy
                self.global_var = self.context_var.get()

    return Mirrored
