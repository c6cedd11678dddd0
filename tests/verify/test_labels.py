# SPDX-License-Identifier: Apache-2.0
"""Labels of rows: what is made of other entries, or of the same ones in another order, has another label."""

from __future__ import annotations

import torch

from farskip_compile.verify.tokens.labels import TokenLabels, at_depth, fresh


def test_a_row_knows_the_order_of_its_entries() -> None:
    value = fresh(1, (2, 3, 4), 3)
    for dim in (1, 2):
        turned = TokenLabels(value.rows.flip(dim), value.shape)
        assert not torch.isin(at_depth(turned, 1).rows, at_depth(value, 1).rows).any()
    two = value.rows.clone()
    two[0, 0, 0], two[0, 1, 0] = value.rows[0, 1, 0], value.rows[0, 0, 0]  # exchanged between parts of a row
    assert at_depth(TokenLabels(two, value.shape), 1).rows[0] != at_depth(value, 1).rows[0]
    assert at_depth(TokenLabels(two, value.shape), 1).rows[1] == at_depth(value, 1).rows[1]
