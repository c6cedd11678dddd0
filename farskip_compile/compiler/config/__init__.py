# SPDX-License-Identifier: Apache-2.0
"""What the user asks for: one frozen configuration, checked before anything is compiled.

Contract: `FarSkipConfig` holds every option as it was given, and refuses what is wrong by itself; `from_options` makes
one of the dictionary of `torch.compile(..., options={...})` and refuses unknown keys. `resolve` makes of it what the
backend uses: it reads the manifest and the profile, once, and refuses what contradicts them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from farskip_compile._compat import CustomGraphPass
from farskip_compile.base.choices import Inner
from farskip_compile.compiler.config.checks import PieceCount, PiecesAlong, check_options, group_name
from farskip_compile.costs import HardwareProfile, load_profile
from farskip_compile.declare import all_declared
from farskip_compile.errors import ConfigError
from farskip_compile.manifest import Manifest, load_manifest, read_manifest
from farskip_compile.passes.graph.declared import Declared
from farskip_compile.passes.rewire.request import Connectivity
from farskip_compile.passes.schedule.search import MemoryLimits
from farskip_compile.text_utils import did_you_mean

__all__ = ["FarSkipConfig", "PieceCount", "PiecesAlong", "Resolved", "resolve"]


@dataclass(frozen=True, kw_only=True)
class FarSkipConfig:
    """Options of the backend.

    Raises:
        ConfigError: a value of the wrong type, or options that exclude each other.
    """

    connectivity: Connectivity | None = None
    """`"full"`, `"attention"`, `"mlp"`, `"none"` (paper section 3); `"lag2"`: MoEs leave out the routed experts of the
    layer before, too; `"ladder"`: each sub-block leaves out the one before it, also in a dense model (arXiv
    2501.06589); or a table: sub-block name -> names of the terms that it leaves out, as `farskip explain` prints them.
    None: what the manifest says, or `"full"` without one."""

    layers: tuple[int, int] | None = None
    """First and last layer to rewire, both inclusive; None for all. A layer begins at each token mixer. The first
    attention in the range also leaves out the routed experts of the layer before it."""

    manifest: Manifest | Mapping[str, Any] | str | os.PathLike[str] | None = None
    """Manifest of the checkpoint: as it is, as parsed JSON, or the path of a file or checkpoint folder
    (`farskip_compile.load_manifest`). It says `connectivity` and `layers`; any other model is refused."""

    inner: Inner = "inductor"
    """The backend that compiles the rewired graph."""

    strict: bool = True
    """Raise if the model can't be rewired exactly as asked. False: compile it unchanged, with one warning."""

    inductor: Mapping[str, Any] = field(default_factory=dict)
    """Options for Inductor, as `torch.compile(..., options=...)` takes them; they reach the backward graph too."""

    merge_reductions: bool = False
    """Tensor parallelism: reduce the attention's and the shared experts' partial sums together (one all-reduce for
    both), or under `connectivity="mlp"` those of a whole layer. Equal in real arithmetic, not bit for bit."""

    pieces: PieceCount = 1
    """In how many pieces exchanges of tokens are cut, with the experts between them, so that one piece is on its way
    while experts work on another: 1, 2, 4, or `"auto"`, the number with the least estimated time. For any
    `connectivity`, `"none"` above all: no function changes, but products of fewer rows may round otherwise. Needs
    `schedule`, and `inner="inductor"`. What can't be cut is an error; under `"auto"`, or without `strict`, it stays
    whole and the schedule's report says why."""

    pieces_along: PiecesAlong = "auto"
    """What a piece of an exchange without drops is: the rows of some local experts, or those of some tokens. By
    experts, all products and sums stay whole. By tokens, experts may share a grouped product, and under `"full"` a
    piece goes from one layer's exchange into the next without waiting for the others; gradients of weights are summed
    piece by piece. `"auto"`: by experts where each has products of its own, else by tokens. Padded exchanges are cut
    along slots and experts, whatever is said here."""

    micro_batches: int = 1
    """In how many parts the batch goes through the whole stack, scheduled against each other: one part's exchanges and
    all-reduces are on their way while the other one's attention and experts compute. 1 or 2. Needs what `pieces` needs,
    experts with room for all rows, and proof that nothing else joins sequences; a batch that can't be cut is an error
    (a warning without `strict`). Not together with `pieces`."""

    schedule: bool = True
    """Order collectives and compute for overlap, forward and backward. Needs `inner="inductor"` (other inner backends
    run the graph as it is) and an initialised `torch.distributed`; changes no result."""

    profile: str | HardwareProfile | None = None
    """Hardware profile that costs are estimated from: the name of a shipped one, the path of a JSON file, or a
    `farskip_compile.costs.HardwareProfile`. None: by the device. Must be the same on all ranks."""

    memory_increase: float = MemoryLimits.memory_increase
    """Fraction by which scheduling may raise the estimated peak of all memory that a graph holds, parameters and other
    inputs included, over what it is unscheduled. In layers compiled one by one, the parameters of the other layers are
    a part of it."""

    load_imbalance: float = 1.0
    """Rows that the fullest rank gets in a dispatch without drops, over the mean; costs and memory are estimated for
    that rank. 1: balanced. It does not matter where the sizes do not depend on data."""

    in_flight_bytes: int = MemoryLimits.in_flight_bytes
    """Bytes that collectives in flight may read and write in all."""

    ep_group: str | Any | None = None
    """Process group, or its name, that all-to-alls are moved to, so that they do not queue behind other collectives of
    their own group: `farskip_compile.comm.expert_group(group)`. None: they stay where they are."""

    check_order: bool = True
    """Compare the order of collectives, and the options, across the ranks at the first run of each compile, and raise
    instead of hanging or computing with different models. The same on all ranks."""

    kinds: Mapping[str, str] = field(default_factory=dict)
    """What operators or modules are that nothing is known about: `{"mylib::wkv": "mixer", "layers.*.pool": "mixer"}`;
    `attention`, `mixer`, `dense`, `routed` or `reduction`, as in `farskip_compile.declare_op`. And the ends of a model
    that can't be told from a part of one: `{"inputs_embeds": "embedding"}` for an input of the call that the residual
    stream begins with, `{"return": "final"}` where the stream is returned without a norm or a head."""

    disable_passes: Sequence[str] = ()
    """Names of passes to leave out, for ablation: those of `farskip_compile.passes.contract.PASSES` that keep the
    function of the model and that no other pass needs. The same on all ranks."""

    on_report: Callable[[Any], None] | None = None
    """Called with the `CompileReport` of each graph that the backend receives."""

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> FarSkipConfig:
        """The configuration for `torch.compile(model, backend="farskip", options=options)`.

        Args:
            options: field -> value; None: all defaults.

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
        """Everything that decides the result, as plain data (also the cache identity of the configuration).

        Raises:
            ConfigError: the manifest or profile does not exist, or the manifest contradicts another option.
        """
        return resolve(self).to_json()


@dataclass(frozen=True, kw_only=True)
class Resolved(FarSkipConfig):
    """A configuration of which nothing has to be looked up any more; made by `resolve`."""

    connectivity: Connectivity
    manifest: Manifest | None
    profile: HardwareProfile | None
    ep_group: str | None
    """Its name."""
    disable_passes: tuple[str, ...]
    declared: tuple[Declared, ...]
    """By `kinds`, by `declare_op`, and by the manifest."""

    def to_json(self) -> dict[str, Any]:
        """Everything that decides the result, as plain data (also the cache identity of the configuration)."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        del values["on_report"]
        return {
            **values,
            "connectivity": _as_lists(self.connectivity),
            "layers": _as_lists(self.layers),
            "manifest": self.manifest.digest if self.manifest is not None else None,
            "profile": self.profile.to_json() if self.profile is not None else None,
            "disable_passes": list(self.disable_passes),
            "kinds": dict(self.kinds),
            "declared": {fact.name: fact.to_json() for fact in self.declared},
            "inductor": {key: _stable(value) for key, value in sorted(self.inductor.items())},
        }


def resolve(config: FarSkipConfig) -> Resolved:
    """What the backend uses: the manifest and the profile are read, and the process group goes by its name.

    Raises:
        ConfigError: the manifest or profile does not exist, or what the manifest says contradicts another option.
    """
    if isinstance(config, Resolved):
        return config
    manifest = _loaded(config.manifest)
    connectivity, layers = config.connectivity, config.layers
    if manifest is not None:
        for name in ("connectivity", "layers"):
            given, theirs = _as_lists(getattr(config, name)), _as_lists(getattr(manifest, name))
            if given is not None and given != theirs:
                raise ConfigError(
                    f"{name}={given!r} contradicts {manifest}, in which it is {theirs!r}",
                    way_out=f"drop {name}, or the manifest",
                )
        connectivity, layers = manifest.connectivity, manifest.layers
    if isinstance(connectivity, Mapping):
        connectivity = {row: tuple(terms) for row, terms in connectivity.items()}
    values = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(FarSkipConfig)}
    values["connectivity"] = "full" if connectivity is None else connectivity
    values["layers"] = (layers[0], layers[1]) if layers is not None else None
    values["manifest"] = manifest
    values["profile"] = load_profile(config.profile) if isinstance(config.profile, str) else config.profile
    values["ep_group"] = group_name(config)
    values["declared"] = all_declared(config.kinds, manifest.declared if manifest is not None else ())
    values["disable_passes"] = tuple(sorted(set(config.disable_passes)))
    return Resolved(**values)


def _loaded(manifest: Manifest | Mapping[str, Any] | str | os.PathLike[str] | None) -> Manifest | None:
    if manifest is None or isinstance(manifest, Manifest):
        return manifest
    return read_manifest(manifest, "the manifest") if isinstance(manifest, Mapping) else load_manifest(manifest)


def _as_lists(value: Any) -> Any:
    """A connectivity or a range of layers, in one form however it was given."""
    if isinstance(value, Mapping):
        return {row: list(terms) for row, terms in value.items()}
    return list(value) if isinstance(value, list | tuple) else value


def _stable(value: Any) -> str:
    """The value of an option as text that is the same in every process: a pass by its identity, not its address."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_stable, value))}]"
    if isinstance(value, CustomGraphPass):
        return f"{type(value).__module__}.{type(value).__qualname__}({value.uuid()!r})"
    return repr(value)
