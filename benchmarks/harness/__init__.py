# SPDX-License-Identifier: Apache-2.0
"""A real network on one machine, and processes on its hosts, for the benchmarks.

Contract: `Network` is all that most readers need. Start at `network.py`; then `commands.py` (what is built, as data),
`janitor.py` (how it is always torn down) and `ranks.py` (the processes). No part of farskip-compile imports this
package, and nothing here imports torch before a rank does.
"""

from harness.commands import format_rate as format_rate
from harness.commands import parse_delay as parse_delay
from harness.commands import parse_rate as parse_rate
from harness.errors import HarnessError as HarnessError
from harness.errors import NetworkUnavailableError as NetworkUnavailableError
from harness.errors import QuantityError as QuantityError
from harness.errors import RankFailedError as RankFailedError
from harness.errors import RankTimeoutError as RankTimeoutError
from harness.errors import TeardownError as TeardownError
from harness.network import LOOPBACK as LOOPBACK
from harness.network import Network as Network
from harness.ranks import RankResult as RankResult
