# SPDX-License-Identifier: Apache-2.0
"""The figures of one kind of hardware, their form in JSON, and the choice of a profile for a device.

In:    a JSON file, measured figures, or the name of a profile that comes with the package.
Out:   an immutable `HardwareProfile`, checked: nothing unknown, nothing missing, everything in range, every figure with
       a source. A device that no profile knows gets a stand-in and a warning.
Never: looks at the machine it runs on. A profile is data, so that all ranks can share one and decide alike.

Units everywhere: seconds, bytes, FLOP/s, bytes/s. A peak is the figure of a data sheet; an efficiency is the fraction
of the peak that a well-shaped call attains. Costs use their product.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from farskip_compile.base.json_files import JsonReader, encode, read_json, write_text
from farskip_compile.costs.curves import ByType, Curves, check_sizes
from farskip_compile.errors import ConfigError
from farskip_compile.text_utils import did_you_mean, shortened

SCHEMA = 2
"""The version of the JSON format that is written."""
READABLE = (1, SCHEMA)
"""Versions that are read: 1 had no curves, and lacks nothing else."""

MAY_BE_ZERO = ("step_latency", "launch_seconds", "sync_seconds", "interference", "duplex")
LEAST, MOST, MOST_SECONDS, MOST_RANKS = 1e-15, 1e24, 1e6, 100_000
"""Bounds of a figure, far beyond any hardware, within which no product of several figures overflows a float."""

SHIPPED = resources.files("farskip_compile.costs") / "profiles"
CPU = "cpu-gloo"
STAND_INS = ((r"\b(AMD|Instinct|Radeon)\b", "mi300x"), (r"\bG?B[1-3]00\b|Blackwell", "b200"), (r"", "h100"))
"""(regular expression found in a device's name, the profile that stands in for it), first match wins."""
log = logging.getLogger("farskip_compile")
CollectiveKind = Literal["all_to_all", "all_reduce", "all_gather", "reduce_scatter", "broadcast"]
COLLECTIVE_KINDS: tuple[CollectiveKind, ...] = get_args(CollectiveKind)


@dataclass(frozen=True, kw_only=True)
class PeakFlops:
    """Dense peak of matrix products in FLOP/s, by input type; None: the hardware has no unit for it."""

    float32: float
    """The peak without TF32."""
    float64: float | None = None
    """None: no unit for it."""
    tfloat32: float | None = None
    """float32 inputs rounded to TF32, where the user allows it."""
    bfloat16: float | None = None
    """None: no unit for it."""
    float16: float | None = None
    """None: no unit for it."""
    float8: float | None = None
    """Any 8-bit floating-point format."""
    int8: float | None = None
    """The peak in operations per second."""


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Fraction of the peak that is attained, in (0, 1]."""

    matmul: float
    """Dense matrix products and convolutions."""
    attention: float
    """Fused attention kernels, forward and backward."""
    grouped_matmul: float
    """One matrix product per expert in one kernel."""
    memory: float
    """The fraction of the memory's bandwidth."""


@dataclass(frozen=True, kw_only=True)
class PerCollective:
    """One figure for each kind of collective."""

    all_to_all: float
    """Dispatch and combine of experts."""
    all_reduce: float
    """Tensor parallelism."""
    all_gather: float
    """Sequence parallelism, sharded parameters."""
    reduce_scatter: float
    """Sequence parallelism, sharded gradients."""
    broadcast: float
    """Broadcasts, and sends from one rank to another."""

    def of(self, kind: CollectiveKind) -> float:
        """Return the figure of `kind`."""
        value: float = getattr(self, kind)
        return value


@dataclass(frozen=True, kw_only=True)
class Link:
    """The connection of the ranks: alpha and beta of `collective_seconds`."""

    bandwidth: float
    """Peak bytes/s that one rank can send, in one direction, while it receives as much."""
    efficiency: PerCollective
    """Fraction of the bandwidth that a large collective attains, in (0, 1]."""
    latency: PerCollective
    """Seconds of a collective however small, from launch to completion."""
    step_latency: float
    """Seconds that each further step of the algorithm adds (ring: one hop)."""
    peer_bandwidth: float | None = None
    """Bytes/s to any one peer of ranks that are wired in pairs (a mesh); None: a switch.

    A small group then has only a part of `bandwidth`. Behind a switch two ranks have all of it.
    """
    interference: float | None = None
    """The fraction by which compute takes longer while a collective of this link is in flight. None: not measured."""
    duplex: float | None = None
    """1 if both directions of an uneven all-to-all move at once, 0 if they alternate; in [0, 1].

    At once, the larger one counts; alternating, their sum. None: not measured, 1.
    """
    correction: ByType | None = field(default=None, hash=False)
    """Seconds measured / seconds of the formula, by kind of collective and (ranks, bytes).

    Only kinds for which the formula is off have a correction.
    """

    def __post_init__(self) -> None:
        for kind, curve in (self.correction or {}).items():
            if kind not in COLLECTIVE_KINDS:
                known = ", ".join(COLLECTIVE_KINDS)
                raise ConfigError(f"correction: {kind!r} is not a kind of collective", way_out=known)
            check_sizes(f"correction.{kind}", curve, 2)


@dataclass(frozen=True, kw_only=True)
class HardwareProfile:
    """The abilities of one kind of hardware.

    Raises:
        ConfigError: a figure out of range or without a source.
    """

    name: str
    """Short name, for reports."""
    description: str
    """One sentence: which device, which network."""
    devices: tuple[str, ...]
    """Regular expressions, case ignored, found in the device names that this profile is for."""
    peak_flops: PeakFlops
    """The peak of matrix products."""
    efficiency: Efficiency
    """The attained fraction of that peak, and of the memory's."""
    memory_bandwidth: float
    """Peak bytes/s, reads and writes together."""
    element_rate: float
    """Elementwise operations/s that fused loops attain (as `OpCost.element_ops` counts them)."""
    launch_seconds: float
    """Seconds added to each kernel: the gap between two kernels, or the call of one."""
    ranks_per_node: int
    """Ranks that share `intra_node`; others are reached by `inter_node`."""
    intra_node: Link
    """The link between ranks of one node."""
    inter_node: Link
    """The link between nodes, for each rank alone."""
    sources: Mapping[str, str] = field(hash=False)
    """The source of each figure, by dotted path; a path also covers everything below it."""
    curves: Curves | None = None
    """Rates by size, which count instead of the efficiencies. None: not measured."""
    sync_seconds: float | None = None
    """Reading a number on the host, besides the wait for the kernels before it. None: as a launch."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", dict(self.sources))
        object.__setattr__(self, "devices", tuple(self.devices))
        for path, value in figures(self):
            self._check(path, value)
        if not 1 <= self.ranks_per_node <= MOST_RANKS:
            self._refuse(f"ranks_per_node = {self.ranks_per_node} must be at least 1, and at most {MOST_RANKS:,}")
        known = {path for path, _ in figures(self)} | {"ranks_per_node"}
        for path in sorted(known):
            if self.source(path) is None:
                self._refuse(f"{path} has no source", f'add "{path}" to sources: a URL or a document')
        covers = {prefix for path in known for prefix in _prefixes(path)}
        for path in self.sources:
            if path not in covers:
                names = shortened(", ".join(sorted(known)), 600)
                self._refuse(f"sources names {path!r}, which is not a figure", f"figures: {names}")

    def _check(self, path: str, value: float) -> None:
        fraction = not {"efficiency", "duplex"}.isdisjoint(path.split("."))
        may_be_zero = path.rsplit(".", 1)[-1] in MAY_BE_ZERO or ".latency." in path
        most = MOST_SECONDS if may_be_zero or path.endswith("_seconds") else MOST
        if not (0 if may_be_zero else LEAST) <= value <= most:
            self._refuse(f"{path} = {value} must be a positive number, at least {LEAST:g} and at most {most:g}")
        if fraction and value > 1:
            self._refuse(f"{path} = {value} is a fraction: at most 1")

    def _refuse(self, reason: str, way_out: str = "correct the figure") -> None:
        raise ConfigError(f"hardware profile {self.name!r}: {reason}", way_out=way_out)

    def source(self, path: str) -> str | None:
        """Return the source of the figure at `path` (`"intra_node.latency.all_to_all"`)."""
        return next((self.sources[prefix] for prefix in _prefixes(path) if prefix in self.sources), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, of which `from_json` makes an equal profile."""
        return {"schema": SCHEMA, **encode(self)}

    @classmethod
    def from_json(cls, data: object, *, origin: str = "hardware profile") -> HardwareProfile:
        """Return the profile of plain data.

        Args:
            data: the result of `to_json`, or the content of a file.
            origin: where it is from, for messages.

        Raises:
            ConfigError: another schema; a field unknown, missing, of the wrong type or out of range.
        """
        reader = JsonReader(origin)
        return reader.decode(cls, reader.version(data, READABLE))

    def save(self, path: str | Path) -> None:
        """Write the profile to the JSON file `path`, for people to read: short numbers, those of a curve on one line.

        Raises:
            ConfigError: it can't be written there.
        """
        text = json.dumps(self.to_json(), indent=2)
        text = re.sub(r"(?<=[ \[])\d{7,}\.0(?=[,\]\n])", lambda number: _short(float(number[0])), text)
        text = re.sub(r"\[\s+([\d.e+-]+(?:,\s+[\d.e+-]+)*)\s+\]", lambda row: f"[{' '.join(row[1].split())}]", text)
        write_text(Path(path), text + "\n", way_out="give an existing folder with the right to write")

    @classmethod
    def load(cls, path: str | Path) -> HardwareProfile:
        """Read a profile from the JSON file `path`.

        Raises:
            ConfigError: no such file, not JSON, or as `from_json`.
        """
        way_out = "give the path of a JSON file that HardwareProfile.save wrote"
        data = read_json(Path(path), "hardware profile", way_out=way_out)
        return cls.from_json(data, origin=f"hardware profile {str(path)!r}")

    def digest(self) -> str:
        """Return a hash of all figures, without names and sources: equal digests give equal costs."""
        text = json.dumps([*figures(self), ["ranks_per_node", self.ranks_per_node]])
        return hashlib.sha256(text.encode()).hexdigest()


def profiles() -> list[str]:
    """Return the names of the shipped profiles."""
    return sorted(entry.name.removesuffix(".json") for entry in SHIPPED.iterdir() if entry.name.endswith(".json"))


def load_profile(name_or_path: str | Path) -> HardwareProfile:
    """Return a shipped profile by name, or one from a JSON file.

    Args:
        name_or_path: one of `profiles()`, or the path of a file that `HardwareProfile.save` wrote.

    Raises:
        ConfigError: no such name or file, or a file that is not a profile.
    """
    name = str(name_or_path)
    if name in profiles():
        text = (SHIPPED / f"{name}.json").read_text(encoding="utf-8")
        return HardwareProfile.from_json(json.loads(text), origin=f"hardware profile {name!r}")
    if name.endswith(".json") or Path(name).is_file():
        return HardwareProfile.load(name)
    always = f"shipped: {', '.join(profiles())}; or give the path of a .json file"
    raise ConfigError(f"no hardware profile is called {name!r}", way_out=did_you_mean(name, profiles(), always=always))


def default_profile(device_type: str, device_name: str = "") -> HardwareProfile:
    """Return the shipped profile for a device; a stand-in with a warning if none fits.

    Args:
        device_type: `"cpu"`, `"cuda"` (also AMD), ...
        device_name: as `torch.cuda.get_device_name()` gives it.
    """
    if device_type == "cpu":
        return load_profile(CPU)
    for name in profiles():
        profile = load_profile(name)
        if any(re.search(pattern, device_name, re.IGNORECASE) for pattern in profile.devices):
            return profile
    name = next(name for pattern, name in STAND_INS if re.search(pattern, device_name, re.IGNORECASE))
    log.warning(
        "no hardware profile for %s device %r: costs are those of %r, so overlap may be planned badly. "
        'Choose one with options={"profile": ...}: %s, or the path of a JSON file that HardwareProfile.save() wrote.',
        device_type,
        device_name,
        name,
        ", ".join(profiles()),
    )
    return load_profile(name)


def figures(part: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every float of a profile that is not None, curves included, as (dotted path, value)."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(part, float):
        yield path, part
    elif is_dataclass(part):
        items = [(entry.name, getattr(part, entry.name)) for entry in fields(part)]
    elif isinstance(part, Mapping):
        items = sorted(part.items())
    elif isinstance(part, tuple):
        items = enumerate(part)
    for name, one in items:
        yield from figures(one, f"{path}.{name}" if path else str(name))


def _short(number: float) -> str:
    """Return `3.35e+12` for people to read, if that is the same number."""
    text = f"{number:.6g}"
    return text if float(text) == number else repr(number)


def _prefixes(path: str) -> Iterator[str]:
    """Yield `a.b.c`, `a.b`, `a`."""
    while path:
        yield path
        path = path.rpartition(".")[0]
