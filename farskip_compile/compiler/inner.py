# SPDX-License-Identifier: Apache-2.0
"""Compile a rewired graph with the inner backend: cut it before differentiation, and give Inductor our passes.

In:    the graph as the pipeline left it, its report, the configuration.
Out:   what runs in place of the graph. At its first run the ranks compare their collectives and options.
Never: changes the function of the graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import fx

from farskip_compile._compat import inductor_compiler, lookup_backend
from farskip_compile._compat.distributed import world_group
from farskip_compile._compat.fake import open_sizes
from farskip_compile._compat.inductor import inductor_setting, scheduling_options
from farskip_compile._compat.inner_compile import compile_inside
from farskip_compile._compat.names import JOINT_FOLDING, POST_GRAD
from farskip_compile.compiler.carrier.outputs import returning_carriers
from farskip_compile.compiler.config import Resolved
from farskip_compile.compiler.inductor_passes.after_fusion import KernelPass
from farskip_compile.compiler.inductor_passes.before_differentiation import cut_before_differentiation
from farskip_compile.compiler.inductor_passes.before_fusion import pin_before_fusion
from farskip_compile.compiler.inductor_passes.plan import LayerContext, Plan, make_plan
from farskip_compile.compiler.inductor_passes.post_grad import PostGradPass
from farskip_compile.compiler.ranks.common_options import common_options
from farskip_compile.compiler.ranks.compiles import counted, traced_frame
from farskip_compile.compiler.ranks.failures import report_failure
from farskip_compile.compiler.ranks.identity import identity_of, source_hash
from farskip_compile.compiler.ranks.stale import expect
from farskip_compile.compiler.ranks.unannounced import check_of_captured
from farskip_compile.passes.graph import ops
from farskip_compile.records.announcement import collective_orders, collective_sizes
from farskip_compile.records.compile import CompileReport
from farskip_compile.records.runs import watched
from farskip_compile.records.schedule import late

Compiled = Callable[..., Any]
report_failed_compile = partial(report_failure, "failed to compile")
"""Tells the other ranks, which may come to wait for this one, that its compile failed."""


def compile_with_inner(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    report: CompileReport | None,
    *,
    config: Resolved,
    mode: str | None,
    bytes_outside: Callable[[], int],
    bare: bool = False,
) -> Compiled:
    """Compile a graph that is rewired already with the inner backend.

    Args:
        module: the graph, as the pipeline left it.
        example_inputs: its example inputs.
        report: the pipeline's report; None: the graph did not go through this backend's pipeline.
        config: the configuration.
        mode: Inductor's mode; None: its default.
        bytes_outside: bytes that are live while a part of a model runs, and that its graph does not know of.
        bare: return what Inductor returns, which the caller can serialise; its runs are not counted.

    Returns:
        What runs in place of the graph.
    """
    begin, frame = time.perf_counter(), traced_frame()
    common = common_options(config, report, source_hash())
    plan = None
    if config.inner == "inductor":
        plan = make_plan(config, module, common=common, context=_context(report, bytes_outside))
    is_part = report is not None and report.departure is not None
    if plan is not None and not is_part:
        cut_before_differentiation(module, plan.config, plan.profile)
    unannounced = plan is None and config.check_order and world_group() is not None
    orders = collective_orders(module.graph) if unannounced else {}
    sizes = collective_sizes(module.graph) if unannounced else {}
    compiled: Compiled
    if config.inner == "inductor":
        compiler = inductor_compiler(_inductor_options(module, config, plan), mode)
        compiled = compile_inside(compiler, module, example_inputs, report_failed_compile)
    else:
        compiled = lookup_backend(config.inner)(module, list(example_inputs))
    if orders:
        compiled = counted(compiled, frame, common, check_of_captured(orders, sizes, common))
    elif plan is not None and config.check_order and not bare:
        compiled = counted(compiled, frame, plan.common)
    if report is None or bare:
        return compiled
    compiled = watched(compiled, module, example_inputs, report, time.perf_counter() - begin)
    one_node = config.inner != "eager"  # all others differentiate the graph before they run it
    return returning_carriers(compiled, report, one_node=one_node)


def _context(report: CompileReport | None, bytes_outside: Callable[[], int]) -> LayerContext:
    """Return the facts about the rest of the model; the default if the graph is a whole model."""
    if report is None or report.departure is None:
        return LayerContext()
    departure = report.departure
    return LayerContext(
        bytes_outside=bytes_outside(),
        seconds_until_arrival=late(departure.came),
        departure=departure.tail,
    )


def _inductor_options(module: fx.GraphModule, config: Resolved, plan: Plan | None) -> dict[str, Any]:
    """Return the user's options for Inductor, with our passes added to them."""
    options = dict(config.inductor)
    inputs = module.graph.find_nodes(op="placeholder")
    if config.pieces != 1 and any(open_sizes(ops.fake(one)) for one in inputs):
        # pieces that arrived: of zeros of such a size, constant folding asks whether there are any (torch 2.13)
        options.setdefault(JOINT_FOLDING, False)
    profile, context = (plan.profile, plan.context) if plan is not None else (None, None)
    identity = identity_of(config, module, profile, context)
    theirs = options.get(POST_GRAD, inductor_setting(POST_GRAD))
    options[POST_GRAD] = PostGradPass(identity, theirs, plan)
    if plan is not None:
        expect(identity, plan.common)
        pin = partial(pin_before_fusion, config.disable_passes)
        options.update(scheduling_options(options, KernelPass(plan, identity), pin, identity))
    return options
