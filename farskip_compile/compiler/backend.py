# SPDX-License-Identifier: Apache-2.0
"""The `torch.compile` backend: rewire the Dynamo graph, then hand it to another backend.

Contract: receives each graph that Dynamo captures, before differentiation, so that AOTAutograd differentiates the
rewired graph. Raises a `FarSkipError` and changes nothing if the model can't be rewired exactly as asked
(`strict=False`: one warning, and the whole model is compiled unchanged). Works with `fullgraph=True`, dynamic shapes,
training, inference, autocast; FX-graph and AOTAutograd caches stay on.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count
from typing import Any

from torch import fx

from farskip_compile._compat import (
    ddp_splits_graphs,
    in_compiled_autograd,
    inductor_compiler,
    is_resumed,
    lookup_backend,
)
from farskip_compile._compat.distributed import world_group
from farskip_compile._compat.fake import open_sizes
from farskip_compile._compat.inductor import inductor_setting, scheduling_options
from farskip_compile._compat.inner_compile import compile_inside
from farskip_compile._compat.names import JOINT_FOLDING, POST_GRAD
from farskip_compile.compiler.carrier.outputs import returning_carriers
from farskip_compile.compiler.config import FarSkipConfig, Resolved, resolve
from farskip_compile.compiler.guard.activity import counted as counting_runs
from farskip_compile.compiler.guard.activity import note_activity
from farskip_compile.compiler.guard.capture_errors import watch as watch_captures
from farskip_compile.compiler.guard.compiled import note_rewired
from farskip_compile.compiler.guard.compiled import watch as watch_compiled
from farskip_compile.compiler.guard.generation import refuse_decode_only
from farskip_compile.compiler.guard.limit import watch as watch_limit
from farskip_compile.compiler.guard.wrappers import watch as watch_wrappers
from farskip_compile.compiler.inductor_passes import KernelPass, PostGradPass, pin_before_fusion
from farskip_compile.compiler.inductor_passes.before_differentiation import PartInPieces, cut_before_differentiation
from farskip_compile.compiler.inductor_passes.plan import Around, Plan, make_plan
from farskip_compile.compiler.pipeline import run
from farskip_compile.compiler.ranks.common_options import common_options
from farskip_compile.compiler.ranks.compiles import counted, traced_frame
from farskip_compile.compiler.ranks.failures import report_failure
from farskip_compile.compiler.ranks.identity import identity_of, source_hash
from farskip_compile.compiler.ranks.stale import expect
from farskip_compile.compiler.ranks.unannounced import check_of_captured
from farskip_compile.errors import ConfigError, DDPSplitError, FarSkipError, FarSkipWarning, PartialModelError
from farskip_compile.passes.boundary.markers import prepared_for
from farskip_compile.passes.graph import ops
from farskip_compile.records.announcement import collective_orders, collective_sizes
from farskip_compile.records.compile import CompileReport, Outcome, earlier_outcome, last_reports, publish
from farskip_compile.records.process_file import errors_noted
from farskip_compile.records.runs import watched
from farskip_compile.records.schedule import late

Compiled = Callable[..., Any]
BACKWARD = "a backward graph of compiled autograd: the forward graph decides"
report_failed_compile = partial(report_failure, "failed to compile")
"""Around whatever other ranks may come to wait for."""


def farskip(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Compiled:
    """Entry point of `torch.compile(model, backend="farskip", options={...})`.

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
    """Of a whole model, nothing is beside."""
    return 0


@dataclass(frozen=True)
class Backend:
    """A configured backend: `torch.compile(model, backend=farskip_compile.backend(FarSkipConfig(...)))`.

    Raises:
        ConfigError: `mode` without Inductor, or options or a mode that Inductor refuses.
    """

    config: FarSkipConfig
    """As it was given."""
    mode: str | None = None
    """Inductor's; None: its default."""
    beside: Callable[[], int] = field(default=nothing, compare=False)
    """Of a part of a model: bytes that are alive while it runs and that it does not know of."""

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
        """The configuration, with everything looked up that it names."""
        return resolve(self.config)

    def __deepcopy__(self, _: dict[int, Any]) -> Backend:
        """It does not change, and may hold what can't be copied: Lightning copies what `torch.compile` is given."""
        return self

    @property
    def __name__(self) -> str:
        """Dynamo names the backend in its messages."""
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
                return counting_runs(self.compile(module, example_inputs, report))

    def rewire(self, module: fx.GraphModule) -> CompileReport:
        """Rewire `module` in place; with `strict=False`, leave it as it is and warn if that can't be done.

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
            return run(module, self.settings, self._in_pieces(module))
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

    def _in_pieces(self, module: fx.GraphModule) -> PartInPieces | None:
        """How to cut a part of a model before it is cut off; None if nothing is to be cut."""
        if self.settings.pieces == 1 or self.settings.inner != "inductor":
            return None
        plan = make_plan(self.settings, module)
        return PartInPieces(plan) if plan is not None else None

    def compile(
        self,
        module: fx.GraphModule,
        example_inputs: Sequence[Any],
        report: CompileReport | None = None,
        *,
        bare: bool = False,
    ) -> Compiled:
        """Compile a graph that is rewired already with the inner backend.

        Args:
            module: the graph, as `rewire` left it.
            example_inputs: its example inputs.
            report: what `rewire` returned; None: of a graph that this backend did not rewire.
            bare: return what Inductor returns, which the caller can serialise; its runs are not counted.

        Returns:
            What runs in place of the graph. At its first run the ranks compare their collectives and options.
        """
        begin, frame = time.perf_counter(), traced_frame()
        common = common_options(self.settings, report, source_hash())
        inductor = self.settings.inner == "inductor"
        is_part = report is not None and report.departure is not None
        plan = make_plan(self.settings, module, common, self._around(report)) if inductor else None
        if plan is not None and not is_part:
            cut_before_differentiation(module, plan)
        unannounced = plan is None and self.settings.check_order and world_group() is not None
        orders = collective_orders(module.graph) if unannounced else {}
        sizes = collective_sizes(module.graph) if unannounced else {}
        if inductor:
            compiler = inductor_compiler(self._inductor_options(module, plan), self.mode)
            compiled = compile_inside(compiler, module, example_inputs, report_failed_compile)
        else:
            compiled = lookup_backend(self.settings.inner)(module, list(example_inputs))
        if orders:
            compiled = counted(compiled, frame, common, check_of_captured(orders, sizes, common))
        elif plan is not None and plan.check_order and not bare:
            compiled = counted(compiled, frame, plan.common)
        if report is None or bare:
            return compiled
        compiled = watched(compiled, module, example_inputs, report, time.perf_counter() - begin)
        one_node = self.settings.inner != "eager"  # all others differentiate the graph before they run it
        return returning_carriers(compiled, report, one_node=one_node)

    def _around(self, report: CompileReport | None) -> Around:
        """Of a part of a model, what it is run among."""
        if report is None or report.departure is None:
            return Around()
        departure = report.departure
        return Around(self.beside(), late(departure.came), departure.tail)

    def _inductor_options(self, module: fx.GraphModule, plan: Plan | None) -> dict[str, Any]:
        """The user's options for Inductor, and our passes added to them."""
        options = dict(self.settings.inductor)
        if self.settings.pieces != 1 and any(
            open_sizes(ops.fake(one)) for one in module.graph.find_nodes(op="placeholder")
        ):
            # pieces that arrived: of zeros of such a size, constant folding asks whether there are any (torch 2.13)
            options.setdefault(JOINT_FOLDING, False)
        decided_by = (plan.profile, plan.around) if plan is not None else (None, None)
        identity = identity_of(self.settings, module, *decided_by)
        theirs = options.get(POST_GRAD, inductor_setting(POST_GRAD))
        options[POST_GRAD] = PostGradPass(identity, theirs, plan)
        if plan is not None:
            expect(identity, plan.common)
            pin = partial(pin_before_fusion, plan)
            options.update(scheduling_options(options, KernelPass(plan, identity), pin, identity))
        return options

    def _unchanged(self, module: fx.GraphModule, error: FarSkipError) -> CompileReport:
        previous = last_reports()[-1:]
        continued = isinstance(error, PartialModelError) and is_resumed(module)
        if not (continued and previous and previous[0].outcome is Outcome.REFUSED):
            warnings.warn(f"farskip compiles the model unchanged (strict=False): {error}", FarSkipWarning, stacklevel=2)
        return CompileReport(
            Outcome.REFUSED, nodes=len(module.graph.nodes), config=self.settings.to_json(), reason=str(error)
        )


def backend(config: FarSkipConfig | None = None, /, *, mode: str | None = None, **options: Any) -> Backend:
    """A backend for `torch.compile(model, backend=...)`, by a configuration or by its fields.

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
    """A name for `backend`, by which a graph can ask for it where `torch.compile` is called without options."""
    name = str(next(_names))
    _prepared[name] = backend
    return name


def forget(name: str) -> None:
    """The opposite of `prepare`."""
    _prepared.pop(name, None)


watch_captures()
watch_limit()
watch_wrappers()
watch_compiled()

# For `farskip_compile.tools.capture` alone

Receive = Callable[[Backend, fx.GraphModule, Sequence[Any]], Compiled]
"""Gets a backend, and the graph and the example inputs that it was called with; returns what is called instead."""

_receiver: ContextVar[Receive | None] = ContextVar("farskip_receiver", default=None)


@contextmanager
def intercept(receive: Receive) -> Iterator[None]:
    """Within the block and in this thread, backends hand what they get to `receive` instead of compiling it.

    For models that are compiled already: which backend each of their graphs goes to, and with which options, is known
    to Dynamo only, until it calls that backend. `torch.compiler.set_stance(force_backend=...)` would put another one in
    its place, and the options were lost.
    """
    token = _receiver.set(receive)
    try:
        yield
    finally:
        _receiver.reset(token)
