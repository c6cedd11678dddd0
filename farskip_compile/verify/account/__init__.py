# SPDX-License-Identifier: Apache-2.0
"""Account for everything: each sub-block is what it was taken for, and everything else that has weights may be there.

    whole      all of it, in the order of the most telling errors
    declared   what a user said, against what rows show
    kinds      what each sub-block does to rows, against the kind that detection found
    outside    what isn't in a sub-block: in front of the stack, behind it, or apart from it
    fragment   a graph without a stack
    layers, weights, begins, ends   the questions that these ask of a graph

Nothing here shares code with detection (`passes.residual`).
"""
