# SPDX-License-Identifier: Apache-2.0
"""Which rows of the residual stream each value depends on: `read` walks a graph, `rules` has a rule for each operator.

state                                      what is known of one value
layout                                     where the rows are in a tensor
views, picks, along, products, collectives how operators pass rows on
moved                                      picked rows: where they are, and what of them may be added up
no_rule                                    operators that nobody knows, or that a user declared
"""
