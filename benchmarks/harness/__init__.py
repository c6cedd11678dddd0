"""A real network on one machine, and processes on its hosts, for the benchmarks.

Contract: `Network` is all that most readers need. Start at `network.py`; then `commands.py` (what is built, as data),
`janitor.py` (how it is always torn down) and `ranks.py` (the processes). No part of farskip-compile imports this
package, and nothing here imports torch before a rank does.
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
