# SPDX-License-Identifier: Apache-2.0
"""Measure a network of namespaces against the rate that was set; or remove what killed runs left.

Usage: python benchmarks/network.py [--hosts 2] [--rate 400mbit] [--delay 1ms] [--json FILE] | --clean

One network namespace stands for each host, joined by veth pairs to a bridge; `tc tbf` limits what every host sends and
receives (see `harness/commands.py`). One process on each host measures all-to-all and all-reduce with gloo, by size.

The last line is the verdict. Exit status: 0 the limit is in force (plain TCP reaches 88 to 102 % of it at the largest
size; headers take 4 %), 1 it is not, or a rank failed, 2 wrong usage, 3 namespaces are not available, and the loopback
interface was measured instead. --rate none sets no limit, and checks none.

As a library: `from harness import Network`, with this folder on `sys.path`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from common import aligned, facts
from harness import HarnessError, Network, QuantityError, bandwidth, janitor
from harness.iproute import why_not

OK, WRONG, USAGE, NO_NETWORK = 0, 1, 2, 3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", type=int, default=2, help="2 to 4 (default: 2)")
    parser.add_argument("--rate", default="400mbit", help="of every host, up and down: 100mbit to 10gbit, or none")
    parser.add_argument("--delay", help="from a host to the switch, like 500us (needs netem in the kernel)")
    parser.add_argument("--repetitions", type=int, default=5, help="of each collective (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to FILE")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for all measurements (default: 300)")
    parser.add_argument("--clean", action="store_true", help="only remove what killed runs left")
    return parser.parse_args()


def clean() -> int:
    if problem := why_not():
        print(f"nothing to clean: {problem}")
        return OK
    tokens = janitor.sweep()
    print(f"removed {len(tokens)} networks of killed runs{': ' * bool(tokens)}{', '.join(tokens)}")
    return OK


def main() -> int:
    args = arguments()
    try:
        if args.clean:
            return clean()
        network = Network(args.hosts, None if args.rate == "none" else args.rate, delay=args.delay)
        return report(network, args)
    except QuantityError as error:
        print(f"network.py: {error}", file=sys.stderr)
        return USAGE
    except HarnessError as error:
        print(f"FAIL: {error}", file=sys.stderr)
        return WRONG


def report(network: Network, args: argparse.Namespace) -> int:
    start, about = time.perf_counter(), facts()
    sizes = bandwidth.sizes_for(network.link.rate)
    with network:
        what, before = network.describe(), network.sent_bytes()
        built = time.perf_counter() - start
        each = (network.addresses, sizes, args.repetitions)
        results = network.run(bandwidth.measure, lambda rank: (rank, *each), timeout=args.timeout)
        after, is_network, rate, problem = network.sent_bytes(), network.is_network, network.link.rate, network.problem
    rows = bandwidth.rows_of([result.value for result in results], sizes)
    passed, line = bandwidth.verdict(rows, rate)
    if not is_network:
        passed, line = False, f"NOT CHECKED: {what} ({problem})"
    wire = None if before is None or after is None else [b - a for a, b in zip(before, after, strict=True)]

    print(aligned({"network": what, **about}))
    print(f"method:   gloo, median of {args.repetitions}, slowest rank, spread is the interquartile range;")
    print(f"          built in {built:.1f} s, {time.perf_counter() - start:.1f} s in all")
    if wire is not None:
        owed = sum(bandwidth.link_bytes(row.operation, row.size, network.hosts) for row in rows)
        owed *= args.repetitions + 1
        sent = f"{min(wire) / 1e6:.1f} to {max(wire) / 1e6:.1f} MB"
        print(f"wire:     each host sent {sent} for {owed / 1e6:.1f} MB of data")
    print(bandwidth.table(rows, rate))
    if args.json is not None:
        which = {"network": what, "is_network": is_network, "hosts": network.hosts, "rate": rate}
        record = {
            **which,
            **about,
            "repetitions": args.repetitions,
            "rows": [{**vars(row), "share": row.share(rate)} for row in rows],
            "sent_bytes": wire,
            "passed": passed,
            "verdict": line,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(line)
    return NO_NETWORK if not is_network else OK if passed else WRONG


if __name__ == "__main__":
    sys.exit(main())
