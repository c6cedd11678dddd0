"""What the user asks for: one frozen configuration, checked before anything is compiled.

Contract: `FarSkipConfig` holds every option; `from_options` turns the dictionary of
`torch.compile(..., options={...})` into one and refuses unknown keys and wrong types.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from farskip_compile._compat import CustomGraphPass
from farskip_compile.costs import HardwareProfile, load_profile, profiles
from farskip_compile.errors import ConfigError
from farskip_compile.manifest import Manifest, load_manifest, read_manifest
from farskip_compile.passes.rewire.request import Connectivity, Named
from farskip_compile.passes.schedule.search import Limits
from farskip_compile.text_utils import did_you_mean

Inner = Literal["inductor", "aot_eager", "eager"]


class _Unsaid(str):
    """A default that nobody asked for, equal to the same text: a manifest may say something else."""


UNSAID: Any = _Unsaid("full")


@dataclass(frozen=True, kw_only=True)
class FarSkipConfig:
    """Options of the backend.

    Raises:
        ConfigError: a value of the wrong type, or options that exclude each other.
    """

    connectivity: Connectivity = UNSAID
    """`"full"`, `"attention"`, `"mlp"`, `"none"` (paper section 3), or a table: sub-block name -> names of the terms
    that it leaves out, as `farskip explain` prints them."""

    layers: tuple[int, int] | None = None
    """First and last layer to rewire, both inclusive; None for all. A layer begins at each token mixer. The first
    attention in the range also leaves out the routed experts of the layer before it."""

    manifest: Manifest | Mapping[str, Any] | str | os.PathLike[str] | None = None
    """Manifest of the checkpoint: as it is, as parsed JSON, or the path of a file or checkpoint folder
    (`farskip_compile.load_manifest`). It says `connectivity` and `layers`; a model that is not its own is refused."""

    inner: Inner = "inductor"
    """The backend that compiles the rewired graph."""

    strict: bool = True
    """Raise if the model can't be rewired exactly as asked. False: compile it unchanged, with one warning."""

    inductor: Mapping[str, Any] = field(default_factory=dict)
    """Options for Inductor, as `torch.compile(..., options=...)` takes them; they reach the backward graph too."""

    merge_reductions: bool = False
    """Tensor parallelism: reduce the attention's and the shared experts' partial sums together (one all-reduce for
    both). Equal in real arithmetic, not bit for bit. Needs `connectivity="full"`."""

    schedule: bool = True
    """Order collectives and compute for overlap, forward and backward. Needs `inner="inductor"` (other inner backends
    run the graph as it is) and an initialised `torch.distributed`; changes no result."""

    profile: str | HardwareProfile | None = None
    """Hardware profile behind the cost estimates: the name of a shipped one, the path of a JSON file, or a
    `farskip_compile.costs.HardwareProfile`. None: by the device. Must be the same on all ranks."""

    memory_increase: float = Limits.memory_increase
    """Part by which scheduling may raise the estimated peak of all memory that a graph holds, with parameters and other
    inputs, over what it is unscheduled."""

    load_imbalance: float = 1.0
    """Rows that the fullest rank gets in a dispatch without drops, over the mean; costs and memory are estimated for
    that rank. 1: balanced. Of a dispatch whose sizes do not depend on data, all is known."""

    in_flight_bytes: int = Limits.in_flight_bytes
    """Bytes that collectives in flight may read and write in all."""

    ep_group: str | Any | None = None
    """Process group, or its name, that all-to-alls are moved to, so that they do not queue behind other collectives of
    theirs: `farskip_compile.comm.expert_group(group)`. None: they stay where they are."""

    check_order: bool = True
    """Compare the order of collectives, and the options, across the ranks at the first run of each graph, and raise
    instead of hang or compute with different models. The same on all ranks."""

    on_report: Callable[[Any], None] | None = None
    """Called with the `CompileReport` of each graph that the backend receives."""

    def __post_init__(self) -> None:
        self._check_connectivity()  # what the caller said
        self._take_manifest()
        self._check_connectivity()
        if self.layers is not None:
            ok = isinstance(self.layers, Sequence) and len(self.layers) == 2
            if not ok or not all(isinstance(x, int) and not isinstance(x, bool) for x in self.layers):
                raise ConfigError(
                    f"layers={self.layers!r} is no pair of integers", way_out="layers=(first, last), both inclusive"
                )
            object.__setattr__(self, "layers", tuple(self.layers))
        if self.inner not in get_args(Inner):
            raise ConfigError(f"inner={self.inner!r} is unknown", way_out=f"one of {', '.join(get_args(Inner))}")
        for name in ("strict", "merge_reductions", "schedule", "check_order"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} is no bool", way_out=f"{name}=True or {name}=False")
        if not isinstance(self.inductor, Mapping) or not all(isinstance(key, str) for key in self.inductor):
            raise ConfigError("inductor= takes a dictionary of Inductor options", way_out="inductor={...}")
        if self.inductor and self.inner != "inductor":
            raise ConfigError(
                f"Inductor options are given, but inner={self.inner!r}", way_out='inner="inductor", or drop them'
            )
        if self.merge_reductions and self.connectivity != "full":
            raise ConfigError(
                f'merge_reductions needs connectivity="full", not {self.connectivity!r}: otherwise something reads '
                "the stream between the two reductions",
                way_out='connectivity="full", or merge_reductions=False',
            )
        if self.on_report is not None and not callable(self.on_report):
            raise ConfigError("on_report is not callable", way_out="pass a function of one report")

        self._check_schedule()

    def _take_manifest(self) -> None:
        if self.manifest is None:
            return
        found = self.manifest
        if isinstance(found, Mapping):
            found = read_manifest(found, "the manifest")
        elif isinstance(found, str | os.PathLike):
            found = load_manifest(found)
        if not isinstance(found, Manifest):
            raise ConfigError(
                f"manifest={self.manifest!r} is no manifest", way_out="a Manifest, its parsed JSON, or a path"
            )
        object.__setattr__(self, "manifest", found)
        for name, unsaid in (("connectivity", isinstance(self.connectivity, _Unsaid)), ("layers", self.layers is None)):
            given, theirs = _as_lists(getattr(self, name)), _as_lists(getattr(found, name))
            if not unsaid and given != theirs:
                raise ConfigError(
                    f"{name}={given!r} contradicts {found}, in which it is {theirs!r}",
                    way_out=f"drop {name}, or the manifest",
                )
            object.__setattr__(self, name, getattr(found, name))

    def _check_schedule(self) -> None:
        if isinstance(self.profile, str):
            object.__setattr__(self, "profile", load_profile(self.profile))
        if self.profile is not None and not isinstance(self.profile, HardwareProfile):
            raise ConfigError(
                f"profile={self.profile!r} is no hardware profile", way_out=f"one of {', '.join(profiles())}, or a path"
            )
        if not _is_number(self.memory_increase, least=0.0):
            raise ConfigError(
                f"memory_increase={self.memory_increase!r} is no part of the peak", way_out="0.05 allows 5 % more"
            )
        if not _is_number(self.load_imbalance, least=1.0):
            raise ConfigError(
                f"load_imbalance={self.load_imbalance!r} is no ratio of the most to the mean",
                way_out="1.0 for balanced experts, 2.0 if the fullest rank gets twice the mean",
            )
        if (
            not isinstance(self.in_flight_bytes, int)
            or isinstance(self.in_flight_bytes, bool)
            or self.in_flight_bytes < 0
        ):
            raise ConfigError(f"in_flight_bytes={self.in_flight_bytes!r} is no number of bytes", way_out="an int >= 0")
        if self.ep_group is not None:
            name = getattr(self.ep_group, "group_name", self.ep_group)
            if not isinstance(name, str):
                raise ConfigError(
                    f"ep_group={self.ep_group!r} is no process group",
                    way_out="farskip_compile.comm.expert_group(group)",
                )
            object.__setattr__(self, "ep_group", name)

    def _check_connectivity(self) -> None:
        wish = self.connectivity
        if isinstance(wish, str):
            if wish not in get_args(Named):
                raise ConfigError(
                    f"connectivity={wish!r} is unknown",
                    way_out=f"one of {', '.join(get_args(Named))}, or a table of the terms that sub-blocks leave out",
                )
            return
        is_table = isinstance(wish, Mapping) and all(
            isinstance(row, str) and not isinstance(terms, str) and all(isinstance(term, str) for term in terms)
            for row, terms in wish.items()
        )
        if not is_table:
            raise ConfigError(
                "connectivity is neither a name nor a table",
                way_out='for example connectivity={"attention.2": ["r1"], "moe.2": ["a2"]}',
            )
        if self.layers is not None:
            raise ConfigError(
                "a connectivity table already says which layers change",
                way_out="drop `layers`, or use a named connectivity",
            )
        object.__setattr__(self, "connectivity", {row: tuple(terms) for row, terms in wish.items()})

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> FarSkipConfig:
        """The configuration for `torch.compile(model, backend="farskip", options=options)`.

        Raises:
            ConfigError: an unknown key, with the closest known one; or a wrong value.
        """
        known = [entry.name for entry in dataclasses.fields(cls)]
        for key in options or {}:
            if key not in known:
                inductor = 'Inductor\'s own options go into options={"inductor": {...}}.'
                hint = did_you_mean(str(key), known, f"known options: {', '.join(known)}", always=inductor)
                raise ConfigError(f"unknown option {key!r}", way_out=hint)
        return cls(**dict(options or {}))

    def to_json(self) -> dict[str, Any]:
        """Everything that decides the result, as plain data (also the cache identity of the configuration)."""
        table = (
            str(self.connectivity)
            if isinstance(self.connectivity, str)
            else {k: list(v) for k, v in self.connectivity.items()}
        )
        return {
            "connectivity": table,
            "layers": list(self.layers) if self.layers else None,
            "manifest": self.manifest.digest if isinstance(self.manifest, Manifest) else None,
            "inner": self.inner,
            "strict": self.strict,
            "merge_reductions": self.merge_reductions,
            "schedule": self.schedule,
            "profile": self.profile.to_json() if isinstance(self.profile, HardwareProfile) else None,
            "memory_increase": self.memory_increase,
            "load_imbalance": self.load_imbalance,
            "in_flight_bytes": self.in_flight_bytes,
            "ep_group": self.ep_group,
            "check_order": self.check_order,
            "inductor": {key: _stable(value) for key, value in sorted(self.inductor.items())},
        }


def _as_lists(value: Any) -> Any:
    """A connectivity or a range of layers, in one form however it was given."""
    if isinstance(value, Mapping):
        return {row: list(terms) for row, terms in value.items()}
    return list(value) if isinstance(value, list | tuple) else value


def _is_number(value: object, *, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < float("inf")


def _stable(value: Any) -> str:
    """The value of an option as text that is the same in every process: a pass by its identity, not its address."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_stable, value))}]"
    if isinstance(value, CustomGraphPass):
        return f"{type(value).__module__}.{type(value).__qualname__}({value.uuid()!r})"
    return repr(value)
