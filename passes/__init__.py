"""The passes, in the order in which they run on a Dynamo graph.

    normalize           open_checkpoints, axis_moves, single_assignment: one name per value          same function
    residual            stream -> regions -> kinds -> table: read the connectivity table off        analysis only
    connectivity        the wish, as the terms that each row leaves out                              analysis only
    rewire              part_collectives, substitute: edit the graph to match                        NEW FUNCTION
    merge_reductions    on request, under tensor parallelism                                         same up to rounding

`farskip_compile.verification` then reads the table off again and compares. Shared ground: `ops` (the only file that
knows operator names), `termset` (sets of terms as intervals), `table` (the one data structure).
"""
