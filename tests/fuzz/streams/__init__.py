# SPDX-License-Identifier: Apache-2.0
"""Decoders whose residual stream is written to, selected from and reshaped between the sub-blocks.

`description` is the data, and draws it; `writes` and `rows` are the tables of changes, each in two spellings: the line
of source that a user writes, and the function that it is. `source` makes a module of a description, `by_hand` computes
it, with the terms that each sub-block leaves out, from an expression of the stream. `check` compares the two.
"""
