# SPDX-License-Identifier: Apache-2.0
"""Faults in `read_stack` and its helpers. The proof of the compile, not a test, must see each of them."""

from __future__ import annotations

import importlib

from tests.mutation.bench import Fault, in_pass
from tests.mutation.models import DECODING, PLAIN, SCALED, SIGNED

regions = importlib.import_module("farskip_compile.passes.residual.regions")
stream = importlib.import_module("farskip_compile.passes.residual.stream")
sums = importlib.import_module("farskip_compile.passes.residual.sums")

FAULTS: list[Fault] = [
    in_pass("reader: a node of two sub-blocks belongs to both", regions.find_regions, " or node in taken", "", PLAIN),
    in_pass(
        "reader: the first sub-block has no region",
        regions.find_regions,
        "range(1, len(regions))",
        "range(2, len(regions))",
        PLAIN,
    ),
    in_pass(
        "reader: each value that is met counts as the newest",
        regions._split_met,
        "rank(stream, value) >= limit",
        "True",
        DECODING,
    ),
    in_pass("reader: the oldest value counts as the newest", regions.rank, "terms.newest", "-terms.newest", DECODING),
    in_pass(
        "reader: terms are numbered one too low",
        stream._number,
        "TermSet.of([len(leaves)])",
        "TermSet.of([max(1, len(leaves) - 1)])",
        PLAIN,
    ),
    in_pass(
        "reader: a sum of one term is no sum", stream._number, "size[inner] else ()", "size[inner] > 1 else ()", SCALED
    ),
    in_pass(
        "reader: a sum holds its last summand alone",
        stream._sum_of,
        "total | terms if total else terms",
        "terms if total else total",
        PLAIN,
    ),
    in_pass(
        "reader: images of terms are counted from two",
        stream._find_side_sums,
        "for index, path in enumerate(images[1:], start=1)",
        "for index, path in enumerate(images[1:], start=2)",
        PLAIN,
    ),
    in_pass(
        "reader: writes to memory are no inputs",
        sums.read_dataflow,
        "inputs + after[node] if node in after else inputs",
        "inputs",
        DECODING,
    ),
    in_pass("reader: summands are swapped", sums._without_zeros, "(left, right)", "(right, left)", SIGNED),
]
