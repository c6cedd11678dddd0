"""The `torch.compile` backend: rewire the Dynamo graph, then hand it to another backend.

Contract: receives each graph that Dynamo captures, before differentiation, so that AOTAutograd differentiates the
rewired graph. Raises a `FarSkipError` and changes nothing if the model can't be rewired exactly as asked
(`strict=False`: one warning, and the whole model is compiled unchanged). Works with `fullgraph=True`, dynamic shapes,
training, inference, autocast; FX-graph and AOTAutograd caches stay on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from farskip_compile._compat import (
    ddp_splits_graphs,
    inductor_compiler,
    inductor_config,
    is_resumed,
    lookup_backend,
)
from farskip_compile._compat.inductor import scheduling_options
from farskip_compile.cache_identity import identity_of
from farskip_compile.config import FarSkipConfig
from farskip_compile.errors import ConfigError, DDPSplitError, FarSkipError, PartialModelError
from farskip_compile.overlap_passes import KernelPass, PostGradPass, make_plan
from farskip_compile.passes.pin_products import pin_products
from farskip_compile.pipeline import run
from farskip_compile.report import CompileReport, Outcome, earlier_outcome, last_reports, publish

Compiled = Callable[..., Any]
POST_GRAD = "post_grad_custom_post_pass"


class FarSkipWarning(UserWarning):
    """With `strict=False`: the model is compiled unchanged, and why."""


def farskip(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Compiled:
    """Entry point of `torch.compile(model, backend="farskip", options={...})`.

    Args:
        module: graph from Dynamo.
        example_inputs: fake inputs of it.
        options: fields of `FarSkipConfig`.
        mode: a mode of Inductor (`"max-autotune-no-cudagraphs"`, ...).

    Raises:
        FarSkipError: see `farskip_compile.errors`.
    """
    return Backend(FarSkipConfig.from_options(options), mode)(module, example_inputs)


@dataclass(frozen=True)
class Backend:
    """A configured backend: `torch.compile(model, backend=farskip_compile.backend(FarSkipConfig(...)))`."""

    config: FarSkipConfig
    mode: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in (None, "default") and self.config.inner != "inductor":
            raise ConfigError(
                f"mode={self.mode!r} is a mode of Inductor, but inner={self.config.inner!r}", way_out='inner="inductor"'
            )
        if self.config.inner == "inductor":
            try:
                inductor_compiler(dict(self.config.inductor), self.mode)
            except RuntimeError as error:
                raise ConfigError(
                    f"Inductor refuses the options or mode: {str(error)[:200]}",
                    way_out="keys and types of torch._inductor.config, as in torch.compile(..., options={...})",
                ) from error

    @property
    def __name__(self) -> str:
        """Dynamo names the backend in its messages."""
        return "farskip"

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        """Rewire `module` and compile it with the inner backend."""
        publish(self._rewire(module), self.config.on_report)
        if self.config.inner == "inductor":
            return inductor_compiler(self._inductor_options(module), self.mode)(module, example_inputs)
        compiled: Compiled = lookup_backend(self.config.inner)(module, list(example_inputs))
        return compiled

    def _inductor_options(self, module: fx.GraphModule) -> dict[str, Any]:
        """The user's options for Inductor and, added to them, our two passes."""
        options = dict(self.config.inductor)
        plan = make_plan(self.config, module)
        identity = identity_of(self.config, module, plan)
        theirs = options.get(POST_GRAD, getattr(inductor_config, POST_GRAD))
        options[POST_GRAD] = PostGradPass(identity, theirs, plan)
        if plan is not None:
            options.update(scheduling_options(options, KernelPass(plan, identity), pin_products, identity))
        return options

    def _rewire(self, module: fx.GraphModule) -> CompileReport:
        try:
            if ddp_splits_graphs():
                raise DDPSplitError(
                    "DistributedDataParallel is active and Dynamo would hand the model over bucket by bucket",
                    way_out='set torch._dynamo.config.optimize_ddp = False (or "python_reducer") before compiling',
                )
            if not self.config.strict and earlier_outcome() is Outcome.REFUSED:
                raise PartialModelError("another graph of this model could not be rewired, so none of them is")
            return run(module, self.config)
        except FarSkipError as error:
            if self.config.strict:
                raise
            if earlier_outcome() is Outcome.REWIRED:
                raise PartialModelError(
                    "another graph of this model is rewired already, and this one can't be: together they would be "
                    f"neither the model nor its FarSkip form. {error.reason}",
                    way_out="torch.compiler.reset(), and call the model with inputs like these first; or "
                    "make all inputs take a way through the model that can be rewired",
                    where=error.where,
                ) from error
            return self._unchanged(module, error)

    def _unchanged(self, module: fx.GraphModule, error: FarSkipError) -> CompileReport:
        previous = last_reports()[-1:]
        continued = isinstance(error, PartialModelError) and is_resumed(module)
        if not (continued and previous and previous[0].outcome is Outcome.REFUSED):
            warnings.warn(f"farskip compiles the model unchanged (strict=False): {error}", FarSkipWarning, stacklevel=2)
        return CompileReport(
            Outcome.REFUSED, nodes=len(module.graph.nodes), config=self.config.to_json(), reason=str(error)
        )


def backend(config: FarSkipConfig | None = None, /, *, mode: str | None = None, **options: Any) -> Backend:
    """A backend for `torch.compile(model, backend=...)`.

    Args:
        config: the configuration; or give its fields as keyword arguments.
        mode: a mode of Inductor.
        **options: fields of `FarSkipConfig`.

    Raises:
        ConfigError: unknown or wrong options.
    """
    if config is not None and options:
        raise ConfigError("both a configuration and options are given", way_out="give one of them")
    return Backend(config if config is not None else FarSkipConfig.from_options(options), mode)
