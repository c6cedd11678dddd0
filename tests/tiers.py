"""The three tiers of the tests: `make test` runs the quick one, `make test-all` two, `make test-deep` all three.

Contract: data, and how it is read. `WHOLE` and `DEEP` are the only places that say which tests are left to
`make test-all` and to `make test-deep`, by kind: a folder, a file, or the beginning of a test's id. What is not listed
is quick: unit tests, properties, the models of transformers against their oracle, each form of a collective on two
ranks. `make test-all` is what a change must pass; it is to take less than half an hour on two cores. What is deep runs
before a release: some parameters of a test whose others a change runs, the same of another model or of one more layout
(`PARAMETERS`); and what another test shows in a smaller form, which is named beside it (`SHOWN_BY`). Tests that are
listed start first, in the order of the tables, so that no long one is left for one worker.
"""

from __future__ import annotations

WHOLE = {
    "tests/fuzz/test_slice.py": "a slice of the fuzzing: 166 generated graphs and models",
    "tests/mutation/": "every fault that was put in by hand must be noticed",
    "tests/faults/": "processes and ranks that fail, and what they leave",
    "tests/docs/": "the programs of the documentation, in processes of their own",
    "tests/manifest/test_docs.py": "a program of the documentation",
    "tests/demo/test_demo.py": "the demo as a whole",
    "tests/benchmarks/": "the benchmarks' own tests: networks of this machine, measured ranks",
    "tests/distill/": "training: jobs, resumed jobs, ranks",
    "tests/calibrate/": "measurements of this machine",
    "tests/simulate/": "predictions for models of full size",
    "tests/compat/": "the table of versions",
    # generated kernels
    "tests/inductor/test_account_of_memory.py": "Inductor's programs, forward and backward",
    "tests/inductor/test_generated_order.py": "Inductor's code, forward and backward",
    "tests/inductor/test_freed_buffers.py": "Inductor's code, forward and backward",
    "tests/inductor/test_overlap_plan.py": "a plan of Inductor's",
    "tests/inductor/test_pieces.py": "Inductor's code of exchanges in pieces",
    "tests/inductor/test_one_build.py": "how other tests build Inductor's kernels",
    "tests/properties/test_architectures.py::test_inductor_is_close": "Inductor's kernels",
    "tests/test_backend.py::test_activation_checkpointing[inductor]": "Inductor's kernels",
    "tests/test_backend.py::test_default_is_full_on_inductor": "Inductor's kernels",
    "tests/test_backend.py::test_dynamic_inductor_training": "Inductor's kernels",
    "tests/test_backend.py::test_inductor_options": "Inductor's kernels",
    "tests/test_errors.py::test_a_refused_model_compiles_unchanged_with_every_inner_backend[inductor]": "kernels again",
    "tests/costs/test_kernels.py": "Inductor's kernels",
    "tests/ranks/test_caches.py": "Inductor's cache, filled and read by fresh processes",
    # ranks
    "tests/distributed/test_transformers_inductor.py": "Inductor's kernels on ranks",
    "tests/distributed/test_transformers_ranks.py": "transformers' models on ranks",
    "tests/distributed/test_expert_parallel_ranks.py": "transformers' own parallelism",
    "tests/distributed/test_torchtitan_ranks.py": "torchtitan's models on ranks",
    "tests/distributed/test_torchtitan_trainer.py": "torchtitan's trainer on ranks",
    "tests/distributed/test_data_parallel_ranks.py": "wrappers that run data-parallel",
    "tests/distributed/test_overlap_ranks.py": "Inductor's kernels on ranks",
    "tests/distributed/test_regional_ranks.py": "layers compiled one by one on ranks",
    "tests/distributed/test_regional_transformers.py": "the same of transformers' models",
    "tests/regional/test_table.py::test_equals": "models compiled in two ways, under each table",
    "tests/regional/test_table.py::test_a_manifest": "a model captured, then compiled in two ways",
    "tests/regional/test_regional.py::test_generate": "a model at two lengths of its layers",
    "tests/regional/test_regional.py::test_lengths": "layers at several lengths",
    "tests/regional/test_regional.py::test_what_transformers": "models that record",
    "tests/regional/test_regional.py::test_its_checkpointing": "models that record",
    "tests/regional/test_regional.py::test_activation_checkpointing": "models that recompute, in each way",
    "tests/regional/test_regional.py::test_accelerate": "a loop of others around what another test calls",
    "tests/regional/test_regional.py::test_autocast": "training in a second precision",
    "tests/regional/test_families.py": "families of transformers, whole and layer by layer",
    "tests/distributed/test_pieces_ranks.py": "Inductor's kernels on ranks",
    "tests/distributed/test_pieces_by_token_ranks.py": "Inductor's kernels on ranks",
    "tests/distributed/test_gradients_of_collectives.py::test_eager": "Inductor's kernels on ranks",
    "tests/distributed/test_rewire_ranks.py::test_two_ranks_under_aot_and_inductor": "Inductor's kernels on ranks",
    "tests/distributed/test_rewire_ranks.py::test_four_ranks": "four ranks",
    "tests/distributed/test_rewire_ranks.py::test_reports_name": "reports of ranks",
    "tests/distributed/test_rewire_ranks.py::test_merged_reductions": "a second form of tensor parallelism on ranks",
    "tests/distributed/test_generated_ranks.py": "generated models on ranks",
    "tests/testing/test_ranks.py::test_all_ranks_pass": "what users call on ranks",
    "tests/test_comm.py::test_two_ranks_eager": "Inductor's kernels on ranks",
    "tests/ranks/test_agree.py::test_on_a_warm_cache": "caches of Inductor, filled twice by fresh ranks",
    "tests/ranks/test_agree.py::test_compiled_models_that_differ": "Inductor's kernels on fresh ranks",
    "tests/models/test_models_distributed.py::test_two_ranks": "the models that others are compared with, on ranks",
    "tests/manifest/test_ranks.py": "a manifest of two ranks",
    "tests/manifest/test_generated.py": "manifests of generated models",
    "tests/models/test_overlapped_form.py": "the form that the benchmark compares with, on ranks",
    "tests/profiling/test_record_ranks.py": "profiles of ranks",
    "tests/models/test_micro_batched_form.py": "a form that the benchmark compares with",
    "tests/models/test_chunked_form.py": "a form that the benchmark compares with",
    "tests/models/test_cache.py::test_ranks_cache": "caches on ranks",
    "tests/_compat/test_kernel_memory.py::test_views_of_one_memory": "Inductor's kernels",
    "tests/_compat/test_kernel_memory.py::test_a_saved_view": "Inductor's kernels",
    # fresh processes
    "tests/test_facade.py::test_functions_win": "imports in every order",
    "tests/guard/test_checkpoints.py::test_imported_in_either_order": "imports in both orders",
    "tests/testing/test_strategies.py::test_without_hypothesis": "an import without a package",
    # whole models, and searches over them
    "tests/testing/test_wiring.py::test_forms_written_by_hand": "all forms by hand",
    "tests/testing/test_equivalence.py::test_a_compiled_model": "models compiled in each way",
    "tests/testing/test_equivalence.py::test_a_rewired_model": "models and their forms by hand",
    "tests/manifest/test_mismatch.py::test_shards_divide": "manifests of sharded models",
    "tests/test_backend.py::test_opened_checkpoints": "backward graphs of checkpoints",
    "tests/properties/test_architectures.py::test_aot_eager_is_close": "generated models again, by AOTAutograd",
    "tests/models/test_training.py::test_autocast": "training in a second precision",
    "tests/models/test_training.py::test_checkpointing": "training that recomputes",
    "tests/testing/test_overlap.py": "estimates of models, forward and backward, by what Inductor makes of them",
    "tests/testing/test_equivalence.py::test_generated_models": "generated models",
    "tests/testing/test_wiring.py::test_generated_models": "generated models",
    "tests/test_compiled_autograd.py::test_compiled_autograd_hands_over_a_backward_graph[aot_eager]": "another one",
    "tests/zoo/test_zoo.py::test_no_family_stops_working": "a quarter of the families, under every connectivity",
    "tests/zoo/test_zoo.py::test_command": "the command on families",
    "tests/models/test_torchtitan.py": "torchtitan's models",
    "tests/models/test_generation.py::test_the_page_on_generation": "Inductor's kernels",
    "tests/models/test_training.py::test_inductor": "Inductor's kernels",
    "tests/models/test_training.py::test_dynamic_lengths": "steps of training at several lengths",
    "tests/models/test_training.py::test_everything_at_once": "every feature of training in one run",
    "tests/models/test_training.py::test_loss_inside": "training, then validation, of each family",
    "tests/test_backend.py::test_marked_dimensions": "training at several lengths",
    "tests/manifest/test_transformers.py": "manifests of transformers' checkpoints",
    "tests/costs/test_model_graphs.py": "costs of whole models",
    "tests/models/test_generation.py::test_generate_is_bit_equal": "tokens by tokens, of each family",
    "tests/models/test_adapters.py::test_merged_equals_unmerged": "adapters of each kind",
    "tests/models/test_generic_form.py::test_compiled_models_are_bit_equal": "families again, by the form by hand",
    "tests/models/test_models.py::test_captures_whole_with_dynamic_shapes": "models at several lengths",
    "tests/models/test_transformers.py::test_deepseek_gradient_checkpointing": "a training step more",
    "tests/models/test_transformers.py::test_family_static_cache": "families with a cache",
    "tests/prepare/test_rewrite.py::test_each_style": "models in each style",
    "tests/manifest/test_mismatch.py::test_another_model": "pairs of models",
    "tests/manifest/test_backend.py::test_whatever_is_compiled": "models compiled in each way",
    "tests/testing/test_wiring.py::test_a_compiled_model_is_held": "models compiled in each way",
    "tests/testing/test_term_tags.py::test_expert_parallel": "models in each form of parallelism",
    "tests/testing/test_term_tags.py::test_reductions_of_sums": "models in each form of parallelism",
    "tests/test_graph_breaks.py::test_ddp_graph_splitting": "two models, cut in many graphs",
    "tests/reading/test_reading.py::test_any_document_of_the_largest_size": "documents of many megabytes",
    "tests/vllm/test_written_models.py::test_any_mixture": "generated models, each compiled",
    "tests/plan/test_front.py": "a search over the connectivities of a model",
    "tests/plan/test_damage.py": "the damage of each row of a model, measured",
}
"""What `make test` leaves out, and of what kind it is."""


PARAMETERS: dict[str, tuple[str, ...]] = {
    "distributed/test_expert_parallel_ranks.py": ("test_equal_to_theirs_bit_for_bit[4",),
    "distributed/test_pieces_by_token_ranks.py": (
        "test_matrices_in_slices[mixtral",
        "test_matrices_in_slices[deepseek_v3",
        "test_tokens_that_are_gathered[mixtral",
        "test_experts_of_transformers[none",
        "test_experts_of_torchtitan[",
    ),
    "distributed/test_pieces_ranks.py": (
        "test_pieces_compute_what_whole_exchanges_do[deepseek_v3",
        "test_pieces_compute_what_whole_exchanges_do[mixtral-layers0",
    ),
    "distributed/test_rewire_ranks.py": (
        "test_four_ranks[allgather",
        "test_four_ranks[padded+tp-qwen3_moe",
        "test_two_ranks_under_aot_and_inductor[allgather",
        "test_two_ranks_under_aot_and_inductor[dropless",
        "test_two_ranks_under_aot_and_inductor[padded",
        "test_two_ranks_under_aot_and_inductor[tp+sp",
    ),
    "distributed/test_regional_ranks.py": (
        "test_bit_equal_to_the_form_by_hand[dropless",
        "test_bit_equal_to_the_form_by_hand[tp]",
        "test_each_piece_crosses_in_flight[dropless-tokens",
        "test_each_piece_crosses_in_flight[padded-auto",
        "test_sharded_layer_by_layer[checkpoint",
        "test_sharded_layer_by_layer[loop compile",
        "test_sharded_layer_by_layer[shard",
    ),
    "distributed/test_regional_transformers.py": (
        "test_equal_to_the_whole_model[tp-inductor",
        "test_equal_to_the_whole_model[all_reduce",
    ),
    "regional/test_families.py": ("test_all_other_families[",),
    "regional/test_regional.py": (
        "test_equals_the_form_by_hand[None-attention",
        "test_equals_the_form_by_hand[None-ladder",
        "test_equals_the_form_by_hand[layers1-full",
        "test_equals_the_form_by_hand[layers1-mlp",
        "test_equals_the_form_by_hand[layers1-ladder",
        "test_equals_the_form_by_hand[layers2-full",
        "test_equals_the_form_by_hand[layers2-attention",
        "test_equals_the_form_by_hand[layers2-lag2",
        "test_gradients_equal_those_of_the_form[mixtral",
    ),
    "distributed/test_transformers_ranks.py": (
        "test_two_ranks[tensor parallel",
        "test_two_ranks[expert parallel-deepseek_v3",
    ),
    "distributed/test_torchtitan_trainer.py": (
        "test_losses_of_each_step[qwen3",
        "test_losses_of_each_step[deepseek_v3-20",
    ),
    "inductor/test_account_of_memory.py": (
        "test_the_account_is_what_the_program_holds[{'connectivity'",
        "test_the_limit_starts_from_what_inductor_alone_would_hold[",
    ),
    "inductor/test_freed_buffers.py": (
        "test_no_buffer_is_used_when_it_is_freed[deepseek_v3",
        "test_no_buffer_is_used_when_it_is_freed[mixtral",
        "test_no_buffer_is_used_when_it_is_freed[qwen3_moe",
    ),
    "inductor/test_pieces.py": (
        "test_auto_cuts_alike_where_a_pass_is_left_out[",
        "test_auto_cuts_where_the_estimate_says_that_it_pays[10000000000000",
    ),
    "inductor/test_generated_order.py": ("test_rewired_models_hide_collectives_forward_and_backward[qwen3_moe",),
    "properties/test_architectures.py": ("test_inductor_is_close_to_the_oracle[llama",),
    "benchmarks/test_compile_cost.py": ("test_operations_grow_linearly[full",),
    "benchmarks/test_overlap_ranks.py": (
        "test_a_cell_from_end_to_end[deepseek_v3",
        "test_a_cell_from_end_to_end[llama4/prefill",
        "test_a_cell_from_end_to_end[qwen3_moe",
    ),
    "distill/test_ranks.py": ("test_two_ranks_are_one_process_with_all_data[ddp",),
    "distill/test_self_distill.py": (
        "test_it_is_the_loop_written_by_hand[{'connectivity",
        "test_it_is_the_loop_written_by_hand[{'warm_up",
    ),
    "simulate/test_micro_batches.py": ("test_every_kind_of_exchange[{'tp", "test_every_kind_of_exchange[{}"),
    "simulate/test_predict.py": (
        "test_orders[{'name",
        "test_orders[{'tp': 2",
        "test_orders[{'products",
        "test_orders[{'skew",
        "test_orders[{'interference",
    ),
    "plan/test_front.py": ("test_what_is_cut_before_differentiation_is_known[{'pieces",),
    "models/test_training.py": ("test_dynamic_lengths[granite_hybrid",),
    "models/test_adapters.py": (
        "test_merged_equals_unmerged[attention",
        "test_merged_equals_unmerged[experts",
        "test_merged_equals_unmerged[output",
    ),
    "models/test_generation.py": (
        "test_generate_is_bit_equal_to_the_oracle[lfm2_moe",
        "test_generate_is_bit_equal_to_the_oracle[llama4",
    ),
    "models/test_models.py": ("test_captures_whole_with_dynamic_shapes[qwen3_moe",),
    "models/test_transformers.py": ("test_deepseek_gradient_checkpointing[eager",),
    "test_backend.py": ("test_dynamic_shapes_do_not_recompile[aot_eager",),
    "test_compiled_autograd.py": ("test_compiled_autograd_hands_over_a_backward_graph[eager",),
}

SHOWN_BY = {
    "docs/test_conversion_page.py": "distill/test_job.py::test_a_checkpoint_is_healed",
    "benchmarks/test_distillation.py::test_rows_wait": "benchmarks/test_distillation.py::test_rows_are_run_once",
    "distill/test_healed_generation.py::test_generation": "distill/test_job.py::test_a_checkpoint_is_healed",
    "distributed/test_transformers_inductor.py::test_the": "inductor/test_generated_order.py::test_rewired_models_hide",
    "distributed/test_transformers_inductor.py::test_a_step": "distributed/test_transformers_ranks.py::test_two_ranks",
    "distributed/test_transformers_ranks.py::test_four_ranks": "distributed/test_rewire_ranks.py::test_four_ranks",
    "distributed/test_torchtitan_ranks.py::test_expert_parallel_training": "distributed/test_torchtitan_trainer.py",
    "distributed/test_expert_parallel_ranks.py::test_a_loaded": "distributed/test_expert_parallel_ranks.py::test_equal",
    "distributed/test_pieces_by_token_ranks.py::test_models": "passes/pieces/test_by_token.py::test_a_piece_goes",
    "benchmarks/test_least_makespan.py::test_the_order": "benchmarks/test_least_makespan.py::test_another_order",
    "distributed/test_pieces_ranks.py::test_layers": "distributed/test_regional_ranks.py::test_each_piece_crosses",
    "distributed/test_regional_ranks.py::test_auto": "distributed/test_regional_ranks.py::test_each_piece_crosses",
    "distributed/test_regional_ranks.py::test_under": "distributed/test_regional_ranks.py::test_each_piece_crosses",
    "distributed/test_overlap_ranks.py::test_results": "distributed/test_pieces_ranks.py::test_pieces_compute",
    "inductor/test_account_of_memory.py::test_the_limit_is": "inductor/test_account_of_memory.py::test_the_account_is",
    "test_backend.py::test_dynamic_inductor": "models/test_training.py::test_dynamic_lengths",
    "models/test_overlapped_form.py::test_all_": "benchmarks/test_overlap_ranks.py::test_a_cell_from_end_to_end",
    "models/test_overlapped_form.py::test_without": "benchmarks/test_overlap_ranks.py::test_a_cell_from_end_to_end",
    "models/test_overlapped_form.py::test_merged": "benchmarks/test_overlap_ranks.py::test_a_cell_from_end_to_end",
    "models/test_models_distributed.py::test_expert_and": "models/test_models_distributed.py::test_two_ranks",
    "manifest/test_generated.py": "manifest/test_mismatch.py::test_another_model",
    "testing/test_equivalence.py::test_generated_models": "testing/test_equivalence.py::test_a_rewired_model",
    "testing/test_wiring.py::test_generated_models": "testing/test_wiring.py::test_forms_written_by_hand",
    "distributed/test_generated_ranks.py": "distributed/test_rewire_ranks.py::test_two_ranks_bit_equal",
    "simulate/test_micro_batches.py::test_beside_pieces": "simulate/test_batches.py::test_alternating_is_what_hides",
    "simulate/test_micro_batches.py::test_gradients_are_added_up": "simulate/test_batches.py::test_gradients",
    "simulate/test_micro_batches.py::test_slower_compute_slows_sums_too": "simulate/test_predict.py::test_several_from",
    "simulate/test_micro_batches.py::test_parameters_are_there_once": "simulate/test_batches.py::test_gradients",
}
"""Of a whole test, or all of a file, where a change runs the same in a smaller form."""

DEEP = (
    *(f"tests/{file}::{test}" for file, tests in PARAMETERS.items() for test in tests),
    *(f"tests/{test}" for test in SHOWN_BY),
)
"""What `make test-all` leaves out, too."""


def place(nodeid: str) -> int | None:
    """Where a test stands in `WHOLE`, or behind that in `DEEP`; None: it is quick."""
    return next((number for number, start in enumerate((*WHOLE, *DEEP)) if nodeid.startswith(start)), None)


def is_deep(nodeid: str) -> bool:
    """Whether a test is left to `make test-deep`."""
    return nodeid.startswith(DEEP)
