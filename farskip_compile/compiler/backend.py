# SPDX-License-Identifier: Apache-2.0
"""The `torch.compile` backend: rewire the Dynamo graph, then hand it to another backend.

Contract: receives each graph that Dynamo captures, before differentiation, so that AOTAutograd differentiates the
rewired graph. Raises a `FarSkipError` and changes nothing if the model can't be rewired exactly as asked
(`strict=False`: one warning, and the whole model is compiled unchanged). Works with `fullgraph=True`, dynamic shapes,
training, inference, autocast; FX-graph and AOTAutograd caches stay on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

from torch import fx

from farskip_compile._compat import ddp_splits_graphs, in_compiled_autograd, inductor_compiler, is_resumed
from farskip_compile._compat.checkpoints import trace_checkpoints_with_side_effects
from farskip_compile.compiler.config import FarSkipConfig, Resolved, resolve
from farskip_compile.compiler.guard.activity import counted as counting_runs
from farskip_compile.compiler.guard.activity import note_activity
from farskip_compile.compiler.guard.capture_errors import watch as watch_captures
from farskip_compile.compiler.guard.compiled import note_rewired
from farskip_compile.compiler.guard.compiled import watch as watch_compiled
from farskip_compile.compiler.guard.compilers import is_ours
from farskip_compile.compiler.guard.generation import refuse_decode_only
from farskip_compile.compiler.guard.limit import watch as watch_limit
from farskip_compile.compiler.guard.wrappers import watch as watch_wrappers
from farskip_compile.compiler.inductor_passes.before_differentiation import part_in_pieces
from farskip_compile.compiler.inner import Compiled, compile_with_inner, report_failed_compile
from farskip_compile.compiler.pipeline import run
from farskip_compile.errors import ConfigError, DDPSplitError, FarSkipError, FarSkipWarning, PartialModelError
from farskip_compile.passes.boundary.markers import prepared_for
from farskip_compile.records.compile import CompileReport, Outcome, earlier_outcome, last_reports, publish
from farskip_compile.records.process_file import errors_noted

BACKWARD = "a backward graph of compiled autograd: the forward graph decides"


def farskip(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Compiled:
    """Compile `module` for `torch.compile(model, backend="farskip", options={...})`.

    Args:
        module: the graph that Dynamo captured; it is edited in place.
        example_inputs: its example inputs.
        options: fields of `FarSkipConfig`.
        mode: one of Inductor's (`"max-autotune-no-cudagraphs"`, ...); needs `inner="inductor"`.

    Raises:
        FarSkipError: see `farskip_compile.errors`.
    """
    with report_failed_compile():
        prepared = _prepared.get(prepared_for(module))
        if prepared is None:
            return Backend(FarSkipConfig.from_options(options), mode)(module, example_inputs)
        if options is not None or mode is not None:
            prepared = Backend(FarSkipConfig.from_options(options), mode, prepared.beside)
        return prepared(module, example_inputs)


def nothing() -> int:
    """Return 0: no memory outside a whole model's graph is live while it runs."""
    return 0


@dataclass(frozen=True)
class Backend:
    """A configured backend: `torch.compile(model, backend=farskip_compile.backend(FarSkipConfig(...)))`.

    Raises:
        ConfigError: `mode` without Inductor, or options or a mode that Inductor refuses.
    """

    config: FarSkipConfig
    """The configuration as it was given."""
    mode: str | None = None
    """Inductor's mode; None: its default."""
    beside: Callable[[], int] = field(default=nothing, compare=False)
    """Returns the bytes that are live while a part of a model runs, and that its graph does not know of."""

    def __post_init__(self) -> None:
        inner = self.settings.inner
        if self.mode not in (None, "default") and inner != "inductor":
            raise ConfigError(
                f"mode={self.mode!r} is a mode of Inductor, but inner={inner!r}", way_out='inner="inductor"'
            )
        if inner == "inductor":
            try:
                inductor_compiler(dict(self.settings.inductor), self.mode)
            except RuntimeError as error:
                raise ConfigError(
                    f"Inductor refuses the options or mode: {str(error)[:200]}",
                    way_out="keys and types of torch._inductor.config, as in torch.compile(..., options={...})",
                ) from error

    @cached_property
    def settings(self) -> Resolved:
        """The configuration with its manifest, profile and process group looked up."""
        return resolve(self.config)

    def __deepcopy__(self, _: dict[int, Any]) -> Backend:
        """Return this object, which never changes and may hold what can't be copied: Lightning copies backends."""
        return self

    @property
    def __name__(self) -> str:
        """The name of the backend in Dynamo's messages."""
        return "farskip"

    def __call__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        """Rewire `module` and compile it with the inner backend."""
        with report_failed_compile():
            refuse_decode_only()
            note_activity()
            if (receive := _receiver.get()) is not None:
                return receive(self, module, example_inputs)
            with errors_noted():
                report = publish(self.rewire(module), self.settings.on_report)
                if report.outcome is Outcome.REWIRED:
                    note_rewired()
                compiled = compile_with_inner(
                    module,
                    example_inputs,
                    report,
                    config=self.settings,
                    mode=self.mode,
                    bytes_outside=self.beside,
                )
                return counting_runs(compiled)

    def rewire(self, module: fx.GraphModule) -> CompileReport:
        """Rewire `module` in place, or raise; with `strict=False`, warn and leave the graph as it is.

        Raises:
            DDPSplitError: DistributedDataParallel would hand the model over in pieces.
            PartialModelError: another graph of this model was rewired or refused, and this one can't go the same way.
            FarSkipError: with `strict`, whatever prevents the rewiring.
        """
        if in_compiled_autograd():  # of a forward graph that was rewired, refused or left alone before
            nodes = len(module.graph.nodes)
            return CompileReport(Outcome.NO_STACK, nodes, self.settings.to_json(), reason=BACKWARD)
        try:
            if ddp_splits_graphs():
                raise DDPSplitError(
                    "DistributedDataParallel is active and Dynamo would hand the model over bucket by bucket",
                    way_out='set torch._dynamo.config.optimize_ddp = False (or "python_reducer") before compiling',
                )
            if not self.settings.strict and earlier_outcome() is Outcome.REFUSED:
                raise PartialModelError("another graph of this model could not be rewired, so none of them is")
            return run(module, self.settings, part_in_pieces(self.settings, module))
        except FarSkipError as error:
            if self.settings.strict:
                raise
            if earlier_outcome() is Outcome.REWIRED:
                raise PartialModelError(
                    "another graph of this model is rewired already, and this one can't be: together they would be "
                    f"neither the model nor its FarSkip form. {error.reason}",
                    way_out="torch.compiler.reset(), and call the model with inputs like these first; or "
                    "make all inputs take a path through the model that can be rewired",
                    where=error.where,
                ) from error
            return self._unchanged(module, error)

    def compile(
        self,
        module: fx.GraphModule,
        example_inputs: Sequence[Any],
        report: CompileReport | None = None,
        *,
        bare: bool = False,
    ) -> Compiled:
        """Compile a graph that is rewired already with the inner backend; see `compile_with_inner`."""
        return compile_with_inner(
            module,
            example_inputs,
            report,
            config=self.settings,
            mode=self.mode,
            bytes_outside=self.beside,
            bare=bare,
        )

    def _unchanged(self, module: fx.GraphModule, error: FarSkipError) -> CompileReport:
        """Warn that the graph is compiled unchanged, once for all graphs of a model, and return its report."""
        previous = last_reports()[-1:]
        continued = isinstance(error, PartialModelError) and is_resumed(module)
        if not (continued and previous and previous[0].outcome is Outcome.REFUSED):
            warnings.warn(f"farskip compiles the model unchanged (strict=False): {error}", FarSkipWarning, stacklevel=2)
        return CompileReport(
            Outcome.REFUSED, nodes=len(module.graph.nodes), config=self.settings.to_json(), reason=str(error)
        )


def backend(config: FarSkipConfig | None = None, /, *, mode: str | None = None, **options: Any) -> Backend:
    """Return a backend for `torch.compile(model, backend=...)`, by a configuration or by its fields.

    Args:
        config: the whole configuration, by place; or give its fields as `options`.
        mode: one of Inductor's (`"max-autotune-no-cudagraphs"`, ...); needs `inner="inductor"`.
        options: fields of `FarSkipConfig`.

    Raises:
        ConfigError: unknown or wrong options, options beside a configuration, or a mode that Inductor refuses.
    """
    if config is not None and options:
        raise ConfigError("both a configuration and options are given", way_out="give one of them")
    return Backend(config if config is not None else FarSkipConfig.from_options(options), mode)


# For `farskip_compile.regional`

_prepared: dict[str, Backend] = {}
_names = count(1)


def prepare(backend: Backend) -> str:
    """Return a name by which a graph can ask for `backend` where `torch.compile` is called without options."""
    name = str(next(_names))
    _prepared[name] = backend
    return name


def forget(name: str) -> None:
    """Forget the backend that `prepare` gave this name."""
    _prepared.pop(name, None)


watch_captures()
watch_limit()
watch_wrappers()
watch_compiled()
trace_checkpoints_with_side_effects(is_ours)

# For `farskip_compile.tools.capture` alone

Receive = Callable[[Backend, fx.GraphModule, Sequence[Any]], Compiled]
"""Takes a backend, its graph and example inputs, and returns what is called in place of the compiled graph."""

_receiver: ContextVar[Receive | None] = ContextVar("farskip_receiver", default=None)


@contextmanager
def intercept(receive: Receive) -> Iterator[None]:
    """Within the block and in this thread, have backends hand their graphs to `receive` instead of compiling them.

    For models that are compiled already: which backend each of their graphs goes to, and with which options, is known
    to Dynamo only, until it calls that backend. `torch.compiler.set_stance(force_backend=...)` would put another one in
    its place, and the options were lost.
    """
    token = _receiver.set(receive)
    try:
        yield
    finally:
        _receiver.reset(token)
