# SPDX-License-Identifier: Apache-2.0
"""Repair most of what rewiring damages without any training: the fold.

A sub-block that leaves out terms reads another value than before. The best linear guess of what it read before, from
what it reads now, is a matrix; that matrix is multiplied into every weight that reads the value. Names and shapes stay.

    twins      the graph as written and the rewired one, from one capture, and what a batch gives them as inputs
    tape       one batch on its way through one graph, node by node
    basis      a change of basis that is exact in floating point, for experiments
    readers    which parameters read a value linearly: found by experiment
    sites      what the rewired sub-blocks read, with its readers, and what they add, with its writers; here and as
    written solve the matrix: ridge regression towards no change multiply a matrix into a parameter, sharded or not
    judge held-out KL from the original, from any point of the way on states what is done, on disk main `fold`: all of
    it, sub-block by sub-block text the result as a table

Start reading at `main`.
"""

from farskip_compile.healing.fold.main import fold
from farskip_compile.healing.fold.record import Folded

__all__ = [
    "Folded",
    "fold",
]
