# SPDX-License-Identifier: Apache-2.0
"""The question of a prediction: a model, a cluster, and the work of one step.

Contract: data, checked at construction: impossible scenarios are refused before anything is built or downloaded. A
`config.json` is read strictly and within bounds before transformers gets it; code that comes with it is never run.
Units: tokens, sequences, ranks.

Models with a name are in `architectures.json`: published dimensions, for the code of transformers. The passes never see
these names: they detect by dataflow, here as everywhere. `cuts` names the matrices of the attention for models whose
plan for tensor parallelism in transformers does not cut the attention.

Ranks: `ranks` = data-parallel groups x `tp`. The ranks of a group share their sequences and cut the attention's heads
among themselves (`tp=1`: data-parallel attention). The experts are cut among `ep` ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from farskip_compile.base.choices import ConnectivityName, ExpertExchange, Phase, ProductDtype
from farskip_compile.base.json_files import JsonReader, read_json, shown
from farskip_compile.costs import HardwareProfile, load_profile
from farskip_compile.errors import ConfigError
from farskip_compile.text_utils import did_you_mean

MOST_LAYERS, MOST_EXPERTS, MOST_RANKS = 1000, 65_536, 65_536
MOST_PIECES = 64
MOST_NUMBER = 1e32
"""Largest number in a configuration: transformers writes 1e30 for "no limit"."""
MOST_LOAD = 1e18
"""Most tokens that chose one expert."""


@dataclass(frozen=True)
class Architecture:
    """One model, as a request to transformers."""

    name: str
    """The name that users give."""
    model_type: str
    """The name in transformers."""
    fields: Mapping[str, Any]
    """Fields of the configuration that differ from the defaults."""
    source: str
    """The publication of the dimensions."""
    cuts: Mapping[str, str] = field(default_factory=dict)
    """Styles of tensor parallelism by module, in addition to the plan of transformers."""
    folder: Path | None = None
    """A folder with a `config.json`, instead of all the above."""

    def config(self, layers: int | None = None) -> Any:
        """Return the configuration of transformers, with the first `layers` layers or with all.

        Raises:
            ConfigError: transformers has no such model, or the model has fewer layers.
        """
        from transformers import AutoConfig

        if self.folder is not None:
            check_configuration(self.folder / "config.json")
        try:
            if self.folder is not None:
                config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
            else:
                config = AutoConfig.for_model(self.model_type, **self.fields)
            config = config.get_text_config()
            count = config.num_hidden_layers
        except Exception as error:  # any: the file may be of others, and say anything
            raise ConfigError(
                f"transformers can't make a configuration of {self.name}: {error}",
                way_out="a newer transformers may know the model",
            ) from error
        if not isinstance(count, int) or not 1 <= count <= MOST_LAYERS:
            raise ConfigError(f"{self.name} has {shown(count)} layers", way_out=f"1 to {MOST_LAYERS}")
        if layers is not None:
            if not 1 <= layers <= count:
                raise ConfigError(f"{self.name} has {count} layers, not {layers}")
            config.num_hidden_layers = layers
            for kinds in ("layer_types", "mlp_layer_types"):
                if getattr(config, kinds, None) is not None:
                    setattr(config, kinds, getattr(config, kinds)[:layers])
        return config


def check_configuration(path: Path) -> None:
    """Check the bounds of a `config.json`, whose meaning is left to transformers.

    Raises:
        ConfigError: the file is not a JSON object of modest size, or has a number that no model has.
    """
    way_out = "the config.json of a model of transformers"
    pending: list[tuple[str, Any]] = [("the whole", read_json(path, "configuration", way_out=way_out))]
    if not isinstance(pending[0][1], dict):
        JsonReader(str(path), way_out=way_out).refuse("the whole", "a JSON object", pending[0][1])
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += ((key, item) for item in value)
        elif isinstance(value, int | float) and abs(value) > MOST_NUMBER:
            JsonReader(str(path), way_out=way_out).refuse(key, f"a number up to {MOST_NUMBER:g}", value)


_TEXT = (resources.files("farskip_compile.measure.simulate") / "architectures.json").read_text(encoding="utf-8")
KNOWN = tuple(JsonReader("architectures.json").decode(Architecture, entry) for entry in json.loads(_TEXT))
"""The models with a name."""


def architecture(name: str) -> Architecture:
    """Return the model called `name`, or that of a folder with a `config.json` of transformers.

    Raises:
        ConfigError: there is neither.
    """
    known = {one.name: one for one in KNOWN}
    if name in known:
        return known[name]
    folder = Path(name)
    if (folder / "config.json").is_file():
        return Architecture(folder.resolve().name, "", {}, str(folder), folder=folder)
    raise ConfigError(
        f"no model is called {name!r}, and there is no folder of that name with a config.json",
        way_out=did_you_mean(name, known, always=f"one of {', '.join(known)}, or a folder with a config.json"),
    )


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One step of one model on one cluster.

    Raises:
        ConfigError: an unknown model or profile, sizes that do not divide, impossible numbers.
    """

    model: str | Architecture
    """A name in `KNOWN`, or a folder with a `config.json` of transformers."""
    device: str | HardwareProfile
    """Hardware profile: the name of a shipped one, the path of a JSON file, or a loaded one."""
    ep: int = 8
    """Ranks that share the experts."""
    tp: int = 1
    """Ranks that share the attention, the shared experts and the dense feed-forwards."""
    phase: Phase | str = Phase.PREFILL
    """`prefill`, `decode` or `train`."""
    prompt: int = 2048
    """Tokens of each sequence; in decode, tokens in its cache."""
    batch: int = 8
    """Sequences of all ranks together, of one micro-batch."""
    exchange: ExpertExchange | None = None
    """The way of tokens to their experts; None: `all-reduce` where `tp == ep` and nothing is trained.

    `all-reduce`: all ranks hold all tokens, run their own experts, and sum; serving engines do this.
    `all-to-all`: dispatch and combine; the default otherwise. `all-gather`, of engines with data-parallel attention and
    without an all-to-all: the tokens of all ranks are gathered, results reduced and scattered.
    """
    pieces: int = 1
    """Pieces of each `all-to-all`, each for some of a rank's experts, predicted in addition to one piece."""
    micro_batches: int = 1
    """2: predict also the batch in two halves, the exchanges of one beside the compute of the other."""
    also: tuple[ConnectivityName, ...] = ()
    """Connectivities to predict in addition to `full`: `lag2`, `ladder`, `attention`, `mlp`."""
    products: ProductDtype = "bfloat16"
    """The type of matrix products. `float8`: as engines serve 8-bit checkpoints, with the router in bfloat16."""
    skew: float = 0.0
    """The exponent of Zipf's law for the choice of experts; 0: equally often."""
    loads: tuple[float, ...] | None = None
    """Recorded counts of tokens that chose each expert; instead of `skew`."""
    layers: int | None = None
    """The number of layers to predict, from the first; None: all."""
    interference: float | None = None
    """The fraction by which compute takes longer during a collective; None: that of the profile."""
    measured: float | None = None
    """Measured seconds of the step as written; compute is scaled so that the prediction meets them.

    A profile has the rates of kernels, and not the overhead of an engine.
    """
    slower: float | None = None
    """The factor by which compute takes longer than the profile says.

    `Prediction.slower` of a measured step is the factor for other steps of the same engine.
    """

    def __post_init__(self) -> None:
        if isinstance(self.model, str):
            object.__setattr__(self, "model", architecture(self.model))
        if isinstance(self.device, str):
            object.__setattr__(self, "device", load_profile(self.device))
        for impossible, reason, way_out in self._checks():
            if impossible:
                raise ConfigError(reason, way_out=way_out)
        object.__setattr__(self, "phase", Phase(self.phase))

    @property
    def ranks(self) -> int:
        """The ranks of the cluster."""
        return max(self.ep, self.tp)

    @property
    def groups(self) -> int:
        """The number of data-parallel groups."""
        return self.ranks // self.tp

    @property
    def profile(self) -> HardwareProfile:
        """The hardware profile."""
        assert isinstance(self.device, HardwareProfile)
        return self.device

    @property
    def architecture(self) -> Architecture:
        """The model, resolved."""
        assert isinstance(self.model, Architecture)
        return self.model

    @property
    def exchanges(self) -> ExpertExchange:
        """The way of tokens to their experts, with the default resolved."""
        return self.exchange or ("all-reduce" if self.tp == self.ep and self.phase != Phase.TRAIN else "all-to-all")

    @property
    def trains(self) -> bool:
        """True if the step has a backward."""
        return self.phase == Phase.TRAIN

    @property
    def tokens(self) -> int:
        """Tokens of one data-parallel group in one step."""
        return self.batch // self.groups * (1 if self.phase == Phase.DECODE else self.prompt)

    def _checks(self) -> Iterator[tuple[bool, str, str]]:
        """Yield (True if impossible, the reason, a hint); each check assumes that those before it passed."""
        for name in ("ep", "tp", "prompt", "batch", "layers", "pieces", "micro_batches"):
            value = getattr(self, name)
            wrong = value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1)
            yield wrong, f"{name}={value!r} must be a whole number of at least 1", ""
        for name, limit in (("ep", MOST_RANKS), ("tp", MOST_RANKS), ("prompt", 10**9), ("batch", 10**9)):
            value = getattr(self, name)
            yield value > limit, f"{name}={shown(value)} is more than any cluster has", f"at most {limit}"
        ranges = (
            ("skew", 0, 5, "an exponent of Zipf's law", "0 is balanced, 1 is strong"),
            ("interference", 0, 10, "a fraction", "0.1: a tenth longer"),
            ("measured", 1e-12, 1e6, "a time in seconds", ""),
            ("slower", 0.01, 1000, "a factor", "2: compute takes twice as long"),
        )
        for name, least, most, what, way_out in ranges:
            value = getattr(self, name)
            wrong = value is not None and not least <= value <= most
            yield wrong, f"{name}={value!r} is not {what}", way_out
        both = self.slower is not None and self.measured is not None
        yield both, "measured and slower both say how long compute takes", "drop one of them"
        if self.loads is not None:
            yield bool(self.skew), "skew and recorded loads say the same thing twice", "drop one of them"
            counts = all(0 <= load <= MOST_LOAD for load in self.loads) and sum(self.loads) > 0
            yield not counts, "loads are counts of tokens, one for each expert, and not all of them 0", ""
        yield from self._layout_checks()

    def _layout_checks(self) -> Iterator[tuple[bool, str, str]]:
        """Yield the checks of how the work is distributed; the numbers are in their ranges."""
        choices = (
            ("phase", tuple(Phase)),
            ("products", get_args(ProductDtype)),
            ("exchange", (None, *get_args(ExpertExchange))),
        )
        for name, known in choices:
            value = getattr(self, name)
            yield value not in known, f"{name}={value!r} is unknown", f"one of {', '.join(filter(None, known))}"
        no_unit = self.products == "float8" and self.profile.peak_flops.float8 is None
        yield no_unit, f"{self.profile.name} has no unit for 8-bit products", "products bfloat16"
        reason = f"ep {self.ep} and tp {self.tp}: neither divides the other"
        way_out = "experts and attention are cut among ranks of one cluster: let one be a multiple of the other"
        yield max(self.ep, self.tp) % min(self.ep, self.tp) > 0, reason, way_out
        groups = f"{self.groups} data-parallel groups ({self.ranks} ranks, {self.tp} of them in each)"
        reason = f"{self.batch} sequences can't be divided among {groups}"
        yield self.batch % self.groups > 0, reason, f"a batch that is a multiple of {self.groups}"
        sums = self.exchanges == "all-reduce"
        reason = f"an all-reduce needs all tokens on all ranks of the experts, but tp is {self.tp} and ep {self.ep}"
        yield sums and self.tp != self.ep, reason, "tp equal to ep, or exchange all-to-all or all-gather"
        reason = f"tp {self.tp} is more than ep {self.ep}: ranks without experts can't dispatch"
        yield not sums and self.tp > self.ep, reason, "ep of at least tp"
        wrong = self.pieces > 1 and self.exchanges != "all-to-all"
        yield wrong, f"pieces={self.pieces} cuts an all-to-all, not an {self.exchanges}", "exchange all-to-all"
        yield self.pieces > MOST_PIECES, f"pieces={self.pieces} is more than anybody cuts", f"at most {MOST_PIECES}"
        parts = f"micro_batches={self.micro_batches}"
        yield self.micro_batches > 2, f"{parts}: a batch is predicted whole or in 2 parts", "micro_batches 1 or 2"
        sequences = self.batch // self.groups
        reason = f"{parts}: the sequences of a data-parallel group, {sequences}, can't be halved"
        yield sequences % self.micro_batches > 0, reason, f"a batch that is a multiple of {2 * self.groups}"
        others = [name for name in get_args(ConnectivityName) if name not in ("none", "full")]
        for name in self.also:
            yield name not in others, f"also={name!r} is unknown, or predicted anyway", f"some of {', '.join(others)}"
        reason = "training is predicted with data-parallel attention only"
        yield self.trains and self.tp > 1, reason, "tp 1; ep may be any size"
        reason = f"{self.tokens} tokens can't be sliced for {self.tp} ranks"
        yield not sums and self.tokens % self.tp > 0, reason, "a batch or a prompt that tp divides"
        reason = f"{parts}: {self.tokens // self.micro_batches} tokens of a part can't be sliced for {self.tp} ranks"
        sliced = not sums and self.tokens % (self.tp * self.micro_batches) > 0
        yield sliced, reason, f"a batch or a prompt that makes them a multiple of {self.tp}"
