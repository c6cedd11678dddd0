"""What is to be predicted: a model, a cluster, and the work of one step.

Contract: data, checked at construction: what can't be is refused here, before anything is built. Units: tokens,
sequences, ranks.

Ranks. `ranks` = data-parallel groups x `tp`. The ranks of a group share their sequences and cut the attention's heads
among themselves (`tp=1`: data-parallel attention). The experts are cut among `ep` ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

from farskip_compile.costs import HardwareProfile, load_profile
from farskip_compile.errors import ConfigError
from farskip_compile.simulate.architectures import Architecture, architecture


class Phase(StrEnum):
    """The work of a step."""

    PREFILL = "prefill"
    """All tokens of the prompts: time to first token (TTFT)."""
    DECODE = "decode"
    """One token for each sequence, behind a cache of `prompt` tokens."""
    TRAIN = "train"
    """Forward and backward."""


Exchange = Literal["all-reduce", "all-to-all", "all-gather"]
Products = Literal["bfloat16", "float8"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One step of one model on one cluster.

    Raises:
        ConfigError: an unknown model or profile, sizes that do not divide, numbers that can't be.
    """

    model: str | Architecture
    """A name that `architectures` knows, or a folder with a `config.json` of transformers."""
    device: str | HardwareProfile
    """Hardware profile: the name of a shipped one, the path of a JSON file, or one that is loaded."""
    ep: int = 8
    """Ranks among which the experts are cut."""
    tp: int = 1
    """Ranks among which the attention, the shared experts and the dense feed-forwards are cut."""
    phase: Phase | str = Phase.PREFILL
    prompt: int = 2048
    """Tokens of each sequence; in decode, tokens in its cache."""
    batch: int = 8
    """Sequences of all ranks together, of one micro-batch."""
    exchange: Exchange | None = None
    """How tokens get to their experts. `all-reduce`: all ranks hold all tokens, run their own experts, and sum.
    `all-to-all`: dispatch and combine. `all-gather`, of data-parallel attention in engines without an all-to-all: the
    tokens of all ranks are gathered, results reduced and scattered. None: the first where `tp == ep` and nothing is
    trained, as serving engines do, else the second."""
    products: Products = "bfloat16"
    """In what matrix products compute. `float8`: as engines serve 8-bit checkpoints; the router in bfloat16."""
    skew: float = 0.0
    """Exponent of Zipf's law by which experts are chosen; 0: equally often."""
    loads: tuple[float, ...] | None = None
    """In place of `skew`: how often each expert was chosen, as recorded."""
    layers: int | None = None
    """Only the first so many layers."""
    interference: float | None = None
    """Part by which compute takes longer while a collective is in flight; None: what the profile says."""
    measured: float | None = None
    """Seconds of the step as it is written, if somebody has measured it: compute then counts so many times as long that
    the prediction meets it. A profile knows what kernels attain, and not what an engine makes of them."""
    slower: float | None = None
    """How many times as long compute takes as the profile says: `Prediction.slower` of a step that was measured, to
    predict others of the same engine."""

    def __post_init__(self) -> None:
        if isinstance(self.model, str):
            object.__setattr__(self, "model", architecture(self.model))
        if isinstance(self.device, str):
            object.__setattr__(self, "device", load_profile(self.device))
        self._check_numbers()
        if self.phase not in list(Phase):
            raise ConfigError(f"phase={self.phase!r} is unknown", way_out=f"one of {', '.join(Phase)}")
        object.__setattr__(self, "phase", Phase(self.phase))
        if self.products not in get_args(Products):
            raise ConfigError(f"products={self.products!r} is unknown", way_out="bfloat16 or float8")
        if self.products == "float8" and self.profile.peak_flops.float8 is None:
            raise ConfigError(f"{self.profile.name} has no unit for 8-bit products", way_out="products bfloat16")
        if max(self.ep, self.tp) % min(self.ep, self.tp):
            raise ConfigError(
                f"ep {self.ep} and tp {self.tp}: neither divides the other",
                way_out="experts and attention are cut among ranks of one cluster: let one be a multiple of the other",
            )
        if self.batch % self.groups:
            raise ConfigError(
                f"{self.batch} sequences can't be shared out among {self.groups} data-parallel groups "
                f"({self.ranks} ranks, {self.tp} of them in each)",
                way_out=f"a batch that is a multiple of {self.groups}",
            )
        self._check_exchange()
        if self.exchanges != "all-reduce" and self.tokens % self.tp:
            raise ConfigError(
                f"{self.tokens} tokens can't be sliced for {self.tp} ranks",
                way_out="a batch or a prompt that tp divides",
            )

    @property
    def ranks(self) -> int:
        """All of the cluster."""
        return max(self.ep, self.tp)

    @property
    def groups(self) -> int:
        """Data-parallel groups."""
        return self.ranks // self.tp

    @property
    def profile(self) -> HardwareProfile:
        """The hardware."""
        assert isinstance(self.device, HardwareProfile)
        return self.device

    @property
    def architecture(self) -> Architecture:
        """The model."""
        assert isinstance(self.model, Architecture)
        return self.model

    @property
    def exchanges(self) -> Exchange:
        """How tokens get to their experts, decided."""
        return self.exchange or ("all-reduce" if self.tp == self.ep and self.phase is not Phase.TRAIN else "all-to-all")

    @property
    def trains(self) -> bool:
        """Whether there is a backward."""
        return self.phase is Phase.TRAIN

    @property
    def tokens(self) -> int:
        """Of one data-parallel group, in one step."""
        return self.batch // self.groups * (1 if self.phase is Phase.DECODE else self.prompt)

    def _check_numbers(self) -> None:
        for name in ("ep", "tp", "prompt", "batch", "layers"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
        if not 0 <= self.skew <= 5:
            raise ConfigError(f"skew={self.skew!r} is no exponent of Zipf's law", way_out="0 is balanced, 1 is strong")
        if self.interference is not None and not 0 <= self.interference <= 10:
            raise ConfigError(f"interference={self.interference!r} is no part", way_out="0.1: a tenth longer")
        if self.measured is not None and not 0 < self.measured < 1e6:
            raise ConfigError(f"measured={self.measured!r} is no time in seconds")
        if self.slower is not None and not 0.01 <= self.slower <= 1000:
            raise ConfigError(f"slower={self.slower!r} is no factor", way_out="2: compute takes twice as long")
        if self.slower is not None and self.measured is not None:
            raise ConfigError("measured and slower both say how long compute takes", way_out="drop one of them")
        if self.loads is not None:
            if self.skew:
                raise ConfigError("skew and recorded loads say the same thing twice", way_out="drop one of them")
            if not self.loads or min(self.loads) < 0 or max(self.loads) <= 0:
                raise ConfigError("loads are counts of tokens, one for each expert, and not all of them 0")

    def _check_exchange(self) -> None:
        if self.exchange is not None and self.exchange not in get_args(Exchange):
            raise ConfigError(
                f"exchange={self.exchange!r} is unknown", way_out=f"one of {', '.join(get_args(Exchange))}"
            )
        if self.exchanges == "all-reduce" and self.tp != self.ep:
            raise ConfigError(
                f"an all-reduce needs all tokens on all ranks of the experts, but tp is {self.tp} and ep {self.ep}",
                way_out="tp equal to ep, or exchange all-to-all or all-gather",
            )
        if self.exchanges != "all-reduce" and self.tp > self.ep:
            raise ConfigError(
                f"tp {self.tp} is more than ep {self.ep}: ranks without experts can't dispatch",
                way_out="ep of at least tp",
            )
        if self.trains and self.tp > 1:
            raise ConfigError(
                "training is predicted with data-parallel attention only",
                way_out="tp 1; ep may be as large as you like",
            )
