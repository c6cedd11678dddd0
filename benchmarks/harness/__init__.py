"""A real network on one machine, and processes on its hosts: what the benchmarks measure on.

Contract: `Network` is the only thing most readers need. Start reading at `network.py`; then `commands.py` (what is
built, as data), `janitor.py` (how it is taken down whatever happens) and `ranks.py` (the processes). No part of
farskip-compile imports this package, and nothing here imports torch before a rank does.
"""

from harness.errors import (
    HarnessError,
    NetworkUnavailableError,
    QuantityError,
    RankError,
    RankFailedError,
    RankTimeoutError,
    TeardownError,
)
from harness.network import LOOPBACK, Network
from harness.quantities import format_rate, parse_delay, parse_rate
from harness.ranks import RankResult

__all__ = [
    "LOOPBACK",
    "HarnessError",
    "Network",
    "NetworkUnavailableError",
    "QuantityError",
    "RankError",
    "RankFailedError",
    "RankResult",
    "RankTimeoutError",
    "TeardownError",
    "format_rate",
    "parse_delay",
    "parse_rate",
]
