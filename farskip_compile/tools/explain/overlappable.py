# SPDX-License-Identifier: Apache-2.0
"""What may be computed while a term is in flight: the reason for rewiring at all.

Contract: looks at the table only. A term's communication (dispatch, combine, all-reduce) can run beside every term
that it does not depend on and that does not depend on it. In a standard model that leaves almost nothing; in the
FarSkip form the routed experts of layer k run beside the attentions of layers k and k+1.

Algorithm: dependence is the closure of "reads". Terms are numbered along the stream, so one walk up and one walk down
over the previous layer, the layer itself and the next layer are enough; nothing worthwhile is found further away.
"""

from __future__ import annotations

from farskip_compile.passes.residual.table import SubBlock, Table


def independent(table: Table, row: SubBlock) -> tuple[str, ...]:
    """Names of the terms that can be computed beside the main term of `row`, one of the rows of `table`."""
    near = [other for layer in range(row.layer - 1, row.layer + 2) for other in table.rows_of(layer)]
    main = table.main_term(row).index
    reads = {index: other.reads for other in near for index in other.terms}
    window = sorted(reads)
    needed: set[int] = set()
    for index in reversed(window):
        if index < main and any(index in reads[user] for user in (main, *needed)):
            needed.add(index)
    needing: set[int] = set()
    for index in window:
        if index > main and any(used in reads[index] for used in (main, *needing)):
            needing.add(index)
    return tuple(table.names(index for index in window if index not in needed | needing | {main}))
