# SPDX-License-Identifier: Apache-2.0
"""Print the whole kill table: `python -m tests.mutation`. The exit status is 0 only if nothing survives."""

from __future__ import annotations

import sys

from tests.mutation.table import PARTS, judge


def main() -> int:
    survivors = total = 0
    for part in PARTS:
        print(f"\n{part}\n")
        for row in judge(part):
            print(row.text(), flush=True)
            total += 1
            survivors += row.verdict is None
    print(f"\n{total - survivors} of {total} faults were noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
