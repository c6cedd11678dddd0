# SPDX-License-Identifier: Apache-2.0
"""A program that owns a network and waits to be killed: `python owner.py BENCHMARKS FOLDER network|loopback`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup, which has it ignored
    benchmarks, folder, kind = sys.argv[1:]
    sys.path[:0] = [benchmarks, str(Path(__file__).parents[2])]
    from harness import Network, iproute

    from tests.benchmarks.rank_functions import sleep_or_raise

    if kind == "loopback":
        iproute.why_not = lambda: "wanted by the test"
    with Network(2, "100mbit", require=kind == "network", log=None) as network:
        token = network._claim.token if network._claim else ""
        (Path(folder) / "token").write_text(token)
        network.run(sleep_or_raise, lambda rank: (rank, None, folder, True), timeout=120)
