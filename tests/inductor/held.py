# SPDX-License-Identifier: Apache-2.0
"""What a program that Inductor generated holds, read off its text: the oracle of the scheduler's account of memory.

In:    the text of one graph's program, for a CPU; what was saved for backward, as it was in a run.
Out:   the most bytes of buffers that are alive at once: with what was saved for backward, without parameters.
Never: asks Inductor's scheduler, or ours. A block lives until the last name of it is deleted, and a result of a call
       as long as the tuple of all of them; what a collective sends, and what it makes, until it is waited for.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

BYTES = {"torch.float32": 4, "torch.float64": 8, "torch.int64": 8, "torch.int32": 4, "torch.bool": 1, "torch.uint8": 1}
GIVEN = re.compile(r"([\w, ]+?),? = args$")
ALLOCATES = re.compile(r"(\w+) = empty_strided\w*\(\(([^)]*)\), \([^)]*\), (torch\.\w+)")
RENAMES = re.compile(r"(\w+) = (?:reinterpret_tensor\()?(\w+)\b.*# reuse")
ALIASES = re.compile(r"(\w+) = (?:reinterpret_tensor\()?(\w+)\b.*# alias")
LAUNCHES = re.compile(r"(\w+) = torch\.ops\._c10d_functional\.\w+\.default\((?:reinterpret_tensor\()?(\w+)")
WAITS = re.compile(r"torch\.ops\._c10d_functional\.wait_tensor\.default\((\w+)\)")
HAS_SIZE = re.compile(r"assert_size_stride\((\w+), \(([^)]*)\)")
CALLS = re.compile(r"(\w+) = torch\.ops\.")
TAKES = re.compile(r"(\w+) = (\w+)\[\d+\]$")
DELETES = re.compile(r"del (.+)")


def most_held(code: str, saved: Sequence[torch.Tensor] = ()) -> int:
    """Bytes."""
    size: dict[int, int] = {}
    block: dict[str, int] = {}
    results: defaultdict[str, list[int]] = defaultdict(list)
    names: Counter[int] = Counter()
    sent: dict[str, int] = {}
    alive = most = 0

    def forget(number: int) -> int:
        names[number] -= 1
        return size[number] if names[number] == 0 else 0

    lines = list(map(str.strip, code.splitlines()))
    sizes = {found[1]: found[2] for line in lines if (found := HAS_SIZE.match(line))}
    taken = {found[1]: found[2] for line in lines if (found := TAKES.match(line)) and found[1] in sizes}
    given = [name for line in lines if (found := GIVEN.match(line)) for name in found[1].split(", ")]
    memories: dict[int, int] = {}
    for name, tensor in zip(given, saved, strict=False):  # after them come the gradients of outputs, small here
        if not name.startswith("primals"):
            memory = tensor.untyped_storage()
            number = block[name] = memories.setdefault(memory.data_ptr(), len(size))
            size[number] = memory.nbytes()
            alive += size[number] if names[number] == 0 else 0
            names[number] += 1
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
        elif (found := CALLS.match(line)) and found[1] in taken.values():
            for name in (name for name, call in taken.items() if call == found[1]):
                number = block[name] = len(size)
                size[number] = _entries(sizes[name]) * BYTES["torch.float32"]
                names[number] = 2  # its own, and the tuple
                results[found[1]].append(number)
                alive += size[number]
        elif (found := WAITS.search(line)) and found[1] in sent:
            alive -= forget(sent.pop(found[1]))
        most = max(most, alive)
        if found := DELETES.match(line):
            for name in map(str.strip, found[1].split(",")):
                alive -= sum(map(forget, [block.pop(name)] if name in block else results.pop(name, [])))
    return most


def _entries(shape: str) -> int:
    return math.prod(int(one) for one in shape.split(",") if one.strip())
