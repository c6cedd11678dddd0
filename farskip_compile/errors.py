# SPDX-License-Identifier: Apache-2.0
"""Every error this package raises on purpose, all under `FarSkipError`, and its one kind of warnings.

Contract: an error says where (layer, graph node, the user's source line if the graph knows it), why, and the way
out. It is raised before anything is changed: the model stays as it was. `refuse` raises one from code that Dynamo may
be tracing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NoReturn

import torch

from farskip_compile._compat import TransparentError
from farskip_compile.text_utils import printable
from farskip_compile.versions import version_conflict


@dataclass(frozen=True)
class Where:
    """The place an error is about; unknown parts are None."""

    layer: int | None = None
    """Index of the decoder layer, counted by token-mixing sub-blocks."""
    node: str | None = None
    """Name of the FX node."""
    source: str | None = None
    """`file:line` of the user's code that made the node."""

    def __str__(self) -> str:
        parts = (("layer {}", self.layer), ("node {!r}", self.node), ("at {}", self.source))
        return ", ".join(text.format(value) for text, value in parts if value is not None)


class FarSkipError(TransparentError):
    """Base class. Reaches the user unwrapped, out of `torch.compile` too; its parts are attributes, for tools.

    Args:
        reason: what is wrong, one sentence.
        way_out: what the user can do about it.
        where: the layer, node and source line concerned.
    """

    def __init__(self, reason: str, *, way_out: str = "", where: Where | None = None) -> None:
        # both may quote names that others chose, and are printed wherever the error ends up
        self.reason = printable(reason, lines=True)
        self.way_out = printable(way_out, lines=True)
        self.where = where or Where()
        super().__init__(str(self), first_useful_frame=None)

    def __str__(self) -> str:
        lines = [self.reason]
        if where := str(self.where):
            lines.append(f"  where:   {where}")
        if self.way_out:
            lines.append(f"  way out: {self.way_out}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # keyword-only arguments would be lost by the default reduction, and errors cross process boundaries
        return (_rebuild, (type(self), self.reason, self.way_out, self.where))


def _rebuild(cls: type[FarSkipError], reason: str, way_out: str, where: Where) -> FarSkipError:
    return cls(reason, way_out=way_out, where=where)


class ConfigError(FarSkipError):
    """An unknown option, a value of the wrong type, or options that exclude each other."""


class LayerRangeError(ConfigError):
    """`layers` lies outside the layers of the model, or holds nothing that `connectivity` changes."""


class ConnectivityError(ConfigError):
    """A user's table names a sub-block or a term that the model does not have, or that is not read."""


class ManifestError(ConfigError):
    """A manifest that can't be read or written, or that describes another model than the one being compiled."""


class MissingPackageError(ConfigError):
    """A package that is needed is not installed, or in a version that does not work; `way_out` installs it."""


class DenseModelError(FarSkipError):
    """The model has a residual stack, but no routed experts."""


class NoResidualStackError(FarSkipError):
    """A residual stack is required (`farskip explain`, `verify`), and the graph has none."""


class NotASumError(FarSkipError):
    """The residual stream is not a plain sum of terms: normalised, mixed or counted twice on the way."""


class PartialModelError(FarSkipError):
    """The graph holds only a part of the model: cut by a graph break, or compiled layer by layer."""


class DDPSplitError(PartialModelError):
    """`torch._dynamo.config.optimize_ddp` would hand the model to the backend in pieces."""


class OriginalWiringError(FarSkipError):
    """A model that is to run rewired is about to run in its original wiring."""


class UnsupportedPatternError(FarSkipError):
    """A construct whose rewiring would not be sound, so it is refused."""


class InseparableExpertsError(UnsupportedPatternError):
    """Routed and shared output can't be separated where the connectivity needs one without the other."""


class VerificationError(FarSkipError):
    """The result is not what was requested: the wiring or a value of the rewired graph, the order of the scheduled
    graph, or a compiled graph from a cache. A defect of this package."""


class OrderMismatchError(FarSkipError):
    """Two ranks are about to launch different collectives on the same process group, which would hang."""


class OptionsMismatchError(OrderMismatchError):
    """Ranks of one process group have compiled with different options or versions, or to different results."""


class RankFailedError(FarSkipError):
    """This rank waits for one that has failed, or that does not arrive within the timeout of the process group."""


class AsyncCollectiveError(PartialModelError):
    """A collective is called with `async_op=True`, which cuts the graph."""


class ParallelismError(FarSkipError):
    """Sizes that don't fit the process group: for example a world size that doesn't divide the experts."""


class DistillationError(FarSkipError):
    """Training can't go on: a loss that is not a number, batches without a target, or damaged files of the run."""


class FarSkipWarning(UserWarning):
    """With `strict=False`: what is not as it was asked for, and why. Or a package newer than those that were tried."""


if newer := version_conflict("torch", torch.__version__):  # `_compat` refuses an older one
    warnings.warn(str(newer), FarSkipWarning, stacklevel=2)


@torch.compiler.assume_constant_result
def refuse(kind: type[FarSkipError], reason: str, way_out: str = "") -> NoReturn:
    """Raise `kind(reason, way_out=way_out)`, in eager and in traced code alike.

    A plain `raise` in traced code would become Dynamo's "can't trace this constructor", without the reason. While
    tracing, the arguments must be constants: text made from a dynamic size is not, and Dynamo's error then names only
    the line.
    """
    raise kind(reason, way_out=way_out)
