"""How much communication a connectivity leaves exposed, by estimate.

In:    a model on ranks (real ones, or `farskip_compile.testing.fake_ranks`), example inputs, connectivities.
Out:   an `Exposure` for each: seconds of collectives, and of these the seconds in which nothing is computed, in the
       order that the scheduler would choose with the given hardware profile; forward and, if asked, backward.
Never: runs or compiles anything: one capture by Dynamo, and for each connectivity the ATen graphs of the rewired graph
       and one search for an order. Fused kernels are not known here, so compute counts as operators do: what a compile
       reports afterwards (`last_schedules`) is closer to the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from torch import nn

from farskip_compile._compat.distributed import world_group
from farskip_compile.capture import Graphs, GraphsOf, with_graphs
from farskip_compile.config import FarSkipConfig, resolve
from farskip_compile.costs.estimates import Estimates
from farskip_compile.errors import ConfigError
from farskip_compile.inductor_passes import Plan, make_plan
from farskip_compile.passes.rewire.request import Connectivity, LayerRange
from farskip_compile.passes.schedule.graph import schedule_graph


@dataclass(frozen=True)
class Exposure:
    """One call, or one training step, on one rank; estimates in seconds."""

    communication: float
    exposed: float
    compute: float

    @property
    def hidden(self) -> float:
        """Fraction of the communication that overlaps compute; 0 where there is none."""
        return 1.0 - self.exposed / self.communication if self.communication else 0.0


class Estimate(Protocol):
    """Estimates a connectivity, in a range of layers."""

    def __call__(self, connectivity: Connectivity, layers: LayerRange = None) -> Exposure:
        """See `with_estimates` for what it raises."""
        ...


T = TypeVar("T")


def with_estimates(
    model: nn.Module,
    args: tuple[Any, ...],
    search: Callable[[Estimate], T],
    *,
    kwargs: Mapping[str, Any] | None = None,
    config: FarSkipConfig | None = None,
    backward: bool = False,
) -> T:
    """Call `search` with a function that estimates a connectivity, and return what it returns.

    Args:
        model: in parallel form; captured, not run.
        args: example inputs of one rank.
        search: may estimate as many connectivities as it likes, one after another.
        kwargs: example inputs by name.
        config: profile and limits of the scheduler; its other fields do not matter.
        backward: a training step instead of a call without gradients.

    Raises:
        ConfigError: there is no process group, or the model has no collectives.
        FarSkipError: it can't be rewired to one of the connectivities.
    """
    if world_group() is None:
        raise ConfigError(
            "torch.distributed is not initialised, so there is no communication to estimate",
            way_out="build the model within farskip_compile.testing.fake_ranks(8), or on real ranks",
        )
    base = resolve(config or FarSkipConfig())

    def use(graphs: GraphsOf) -> T:
        def estimate(connectivity: Connectivity, layers: LayerRange = None) -> Exposure:
            asked = replace(base, connectivity=connectivity, layers=layers, schedule=True)
            found = graphs(asked)
            plan = make_plan(asked, found.module)
            assert plan is not None
            exposure = _total(found, plan)
            if not exposure.communication:
                raise ConfigError(
                    "the model has no collectives, so nothing can be hidden",
                    way_out="build the model in parallel form",
                )
            return exposure

        return search(estimate)

    return with_graphs(model, args, kwargs or {}, use, backward=backward)


def _total(graphs: Graphs, plan: Plan) -> Exposure:
    communication = exposed = compute = 0.0
    for phase, graph in graphs.phases:
        estimates = Estimates(graph, plan.profile, plan.imbalance)
        after = schedule_graph(graph, estimates, plan.limits, backward=phase == "backward").after
        communication += after.communication
        exposed += after.exposed
        compute += after.compute
    return Exposure(communication, exposed, compute)
