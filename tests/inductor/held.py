"""What a program that Inductor generated holds, read off its text: the oracle of the scheduler's account of memory.

In:    the text of one graph's program, for a CPU.
Out:   the most bytes of buffers that are alive at once: with what was saved for backward, without parameters.
Never: asks Inductor's scheduler, or ours. A block lives until the last name of it is deleted; what a collective sends,
       and what it makes, until it is waited for.
"""

from __future__ import annotations

import math
import re
from collections import Counter

BYTES = {"torch.float32": 4, "torch.float64": 8, "torch.int64": 8, "torch.int32": 4, "torch.bool": 1, "torch.uint8": 1}
GIVEN = re.compile(r"([\w, ]+?),? = args$")
HAS_SIZE = re.compile(r"assert_size_stride\((\w+), \(([^)]*)\)")
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

    lines = list(map(str.strip, code.splitlines()))
    given = {name for line in lines if (found := GIVEN.match(line)) for name in found[1].split(", ")}
    for line in lines:  # what is given is there from the start, wherever its size is asserted
        found = HAS_SIZE.match(line)
        if found and found[1] in given - block.keys() and not found[1].startswith(("primals", "arg")):
            number = block[found[1]] = len(size)
            size[number] = _entries(found[2]) * BYTES["torch.float32"]  # of indices, half
            names[number] += 1
            alive += size[number]
    for line in lines:
        if found := ALLOCATES.match(line):
            name, shape, dtype = found.groups()
            number = block[name] = len(size)
            size[number] = _entries(shape) * BYTES[dtype]
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


def _entries(shape: str) -> int:
    return math.prod(int(one) for one in shape.split(",") if one.strip())
