"""What a program that Inductor generated holds, read off its text: the oracle of the scheduler's account of memory.

In:    the text of one graph's program, for a CPU.
Out:   the most bytes of buffers that are alive at once, without inputs.
Never: asks Inductor's scheduler, or ours. A block lives until the last name of it is deleted; what a collective sends,
       and what it makes, until it is waited for.
"""

from __future__ import annotations

import math
import re
from collections import Counter

BYTES = {"torch.float32": 4, "torch.float64": 8, "torch.int64": 8, "torch.int32": 4, "torch.bool": 1, "torch.uint8": 1}
ALLOCATES = re.compile(r"(\w+) = empty_strided\w*\(\(([^)]*)\), \([^)]*\), (torch\.\w+)")
RENAMES = re.compile(r"(\w+) = (?:reinterpret_tensor\()?(\w+)\b.*# reuse")
ALIASES = re.compile(r"(\w+) = (?:reinterpret_tensor\()?(\w+)\b.*# alias")
LAUNCHES = re.compile(r"(\w+) = torch\.ops\._c10d_functional\.\w+\.default\((?:reinterpret_tensor\()?(\w+)")
WAITS = re.compile(r"torch\.ops\._c10d_functional\.wait_tensor\.default\((\w+)\)")
DELETES = re.compile(r"del (.+)")


def most_held(code: str) -> int:
    """Bytes."""
    size: dict[int, int] = {}
    block: dict[str, int] = {}
    names: Counter[int] = Counter()
    sent: dict[str, int] = {}
    alive = most = 0

    def forget(number: int) -> int:
        names[number] -= 1
        return size[number] if names[number] == 0 else 0

    for line in map(str.strip, code.splitlines()):
        if found := ALLOCATES.match(line):
            name, shape, dtype = found.groups()
            number = block[name] = len(size)
            size[number] = math.prod(int(one) for one in shape.split(",") if one.strip()) * BYTES[dtype]
            names[number] += 1
            alive += size[number]
        elif (found := RENAMES.match(line)) and found[2] in block:
            block[found[1]] = block.pop(found[2])
        elif (found := ALIASES.match(line)) and found[2] in block:
            block[found[1]] = block[found[2]]
            names[block[found[2]]] += 1
        elif (found := LAUNCHES.match(line)) and found[2] in block:
            number = block[found[1]] = len(size)
            size[number] = size[block[found[2]]]  # all-to-alls with equal splits
            names[number] += 1
            sent[found[1]] = block[found[2]]
            names[block[found[2]]] += 1
            alive += size[number]
        elif (found := WAITS.search(line)) and found[1] in sent:
            alive -= forget(sent.pop(found[1]))
        most = max(most, alive)
        if found := DELETES.match(line):
            alive -= sum(forget(block.pop(name)) for name in map(str.strip, found[1].split(",")) if name in block)
    return most
