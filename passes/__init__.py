"""The passes, in the order in which they run.

On the Dynamo graph, before differentiation:

    normalize           open_checkpoints, axis_moves, single_assignment: one name per value          same function
    residual            stream -> regions -> stack -> kinds -> table: read the table off            analysis only
                        not_a_sum: if there is none, say why; hidden_collectives: those inside of other operators
    connectivity        the wish, as the terms that each row leaves out                              analysis only
    rewire              split_sums, substitute: edit the graph to match                        NEW FUNCTION
    merge_reductions    on request, under tensor parallelism                                         same up to rounding

`farskip_compile.verify.rewiring` then reads the stack off again and compares. Last, `tags` notes on each node which
terms it computes, for reports on what becomes of it.

In Inductor, once for the forward and once for the backward graph (`farskip_compile.inductor_passes` runs them):

    collectives         one launch and one wait each                                                 same function
    schedule_graph      graph_program -> placement, list_schedule -> list_order: order the graph     same function
    pin_products        pins, so that fusion keeps what the order hides                              same function
    schedule_kernels    kernel_program -> list_schedule: order the fused kernels (`unscheduled`:     same function
                        the memory that the limit is a part of)

`program` is what the scheduler sees: tasks, memory, and what an order of them costs (`live_memory`: while
it grows). Shared ground of all: `ops` and `effects` (the only files that know operator names: what is
computed, and what is done besides), `termset` (sets of terms as intervals), `table` (the one data structure).
"""
