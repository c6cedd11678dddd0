# SPDX-License-Identifier: Apache-2.0
"""What this package takes from PyTorch by names that no import shows: data only, and nothing of torch is imported.

Contract: `_compat` reads these attributes of private objects, and these keys of configurations, and no others; a test
holds the source of `_compat` against this list, and this list against the torch that is installed. A name that is not
there in every supported version stands in `VERSIONS` too: until a version has it, or after one has dropped it, the code
that asks for it does without. What is no longer needed once the oldest supported version moves on shows there.
"""

from __future__ import annotations

DETERMINISTIC = "deterministic"
JOINT_FOLDING = "joint_graph_constant_folding"
LOCALITY = "reorder_for_locality"
POST_GRAD = "post_grad_custom_post_pass"
PRE_FUSION = "_pre_fusion_custom_pass"
REORDER = "reorder_for_compute_comm_overlap"
REORDER_PASSES = "reorder_for_compute_comm_overlap_passes"
REUSE = "allow_buffer_reuse"
SIMPLE_OVERLAP = "aten_distributed_optimizations.enable_simple_overlap"
KERNEL_PROFILE = "cpp.enable_kernel_profile"
PACKAGE_METADATA = "aot_inductor.metadata"
NO_CACHES = "force_disable_caches"
DDP_CUTS = "optimize_ddp"
COMPILED_AUTOGRAD = "compiled_autograd"
EAGER_BACKWARD = "force_non_lazy_backward_lowering"
CUDA_GRAPHS = "triton.cudagraphs"
FEWER_PARTS = "triton.reorder_for_reducing_graph_partitions"
IN_PARTS = "graph_partition"
LEFT_OUT = "custom_should_partition_ops"

CONFIG_KEYS: dict[str, tuple[str, ...]] = {
    "torch._inductor.config": (
        DETERMINISTIC,
        JOINT_FOLDING,
        LOCALITY,
        POST_GRAD,
        PRE_FUSION,
        REORDER,
        REORDER_PASSES,
        REUSE,
        SIMPLE_OVERLAP,
        KERNEL_PROFILE,
        NO_CACHES,
        PACKAGE_METADATA,
        CUDA_GRAPHS,
        FEWER_PARTS,
        IN_PARTS,
        LEFT_OUT,
    ),
    "torch._functorch.config": (EAGER_BACKWARD,),
    "torch._dynamo.config": (COMPILED_AUTOGRAD, DDP_CUTS),
}
"""Configuration -> its keys."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    # why Dynamo ended a graph, and where a compile stands
    "torch._dynamo.output_graph.GraphCompileReason": ("reason", "user_stack", "graph_break"),
    "torch._dynamo.output_graph.OutputGraph": (
        "compile_subgraph_reason",
        "compiler_fn",
        "global_scope",
        "local_scope",
        "root_tx",
        "side_effects",
    ),  # the former also put on the graph module
    "torch._dynamo.side_effects.SideEffects": ("_get_modified_vars",),
    "torch._dynamo.variables.base.VariableTracker": ("mutation_type", "source"),
    "torch._dynamo.utils.CompilationMetrics": (
        "co_filename",
        "co_firstlineno",
        "compile_id",
        "fail_type",
        "fail_reason",
        "fail_user_frame_filename",
        "fail_user_frame_lineno",
        "has_guarded_code",
        "start_time",
    ),
    "torch._dynamo.exc.TorchRuntimeError": ("real_stack",),  # one of many that have it
    "torch._guards.CompileContext": ("compile_id",),
    # where the inputs of a graph come from
    "torch._dynamo.variables.builder.GraphArg": ("example", "source"),
    "torch._guards.Source": ("guard_source", "name"),
    "torch._dynamo.source.LocalSource": ("local_name",),
    "torch._dynamo.source.GlobalSource": ("global_name",),
    "torch._dynamo.source.AttrSource": ("base", "member"),
    "torch._dynamo.source.GetItemSource": ("base", "index"),
    # what compiles, and what is compiled
    "torch._TorchCompileInductorWrapper": ("config",),
    "torch._TorchCompileWrapper": ("compiler_fn", "kwargs"),
    "torch._dynamo.eval_frame.OptimizedModule": ("_orig_mod", "dynamo_ctx"),
    "torch._dynamo.eval_frame.OptimizeContext": ("callback",),
    "torch._dynamo.backends.distributed.DDPOptimizer": ("backend_compile_fn",),
    "torch._dynamo.symbolic_convert.InstructionTranslator": ("f_code", "output"),
    "torch.nn.Module": (
        "_compiled_call_impl",
        "_forward_hooks",
        "_forward_pre_hooks",
        "_modules",
        "_non_persistent_buffers_set",
        "_parameters",
        "_buffers",
    ),
    "torch.nn.parallel.DistributedDataParallel": (
        "_get_active_ddp_module",
        "_set_params_and_buffers_to_ignore_for_model",
        "module",
    ),
    # what FSDP2 puts in the place of parameters
    "torch.distributed.tensor.DTensor": ("__tensor_flatten__", "_local_tensor"),  # one of many wrappers that flatten
    "torch.distributed.fsdp.FSDPModule": ("_get_fsdp_state",),
    "torch.distributed.fsdp._fully_shard._fsdp_state.FSDPState": ("_fsdp_param_group",),
    "torch.distributed.fsdp._fully_shard._fsdp_param_group.FSDPParamGroup": ("fsdp_params",),
    "torch.distributed.fsdp._fully_shard._fsdp_param.FSDPParam": ("_unsharded_param", "sharded_param"),
    # process groups
    "torch.distributed.ProcessGroup": ("_device_types", "_get_backend"),
    "torch._C._distributed_c10d.ProcessGroupGloo": ("options",),  # not all kinds of groups have them
    "torch._C._distributed_c10d.Backend.Options": ("_timeout",),
    "torch.fx.Graph": ("_codegen",),
    # symbolic sizes
    "torch._subclasses.fake_tensor.FakeTensor": ("fake_mode",),
    "torch._subclasses.fake_tensor.FakeTensorMode": ("shape_env",),
    "torch.fx.experimental.sym_node.SymNode": ("expr", "shape_env"),
    "torch.fx.experimental.symbolic_shapes.ShapeEnv": (
        "backed_var_to_val",
        "deferred_runtime_asserts",
        "evaluate_guards_expression",
        "is_unbacked_symint",
        "produce_guards_expression",
        "replace",
        "var_to_hint_override",
        "var_to_range",
    ),
    "torch.fx.experimental.symbolic_shapes.RuntimeAssert": ("expr",),
    "torch.utils._sympy.value_ranges.ValueRanges": ("lower", "upper"),
    "torch.export.dynamic_shapes.ShapesCollection": ("dynamic_shapes",),  # one of two that have it
    # operators, tensors and the nodes of autograd
    "torch._ops.OpOverload": ("_overloadname", "_schema"),
    "torch._ops.OpOverloadPacket": ("_qualified_op_name",),
    "torch.FunctionSchema": ("arguments",),
    "torch.UntypedStorage": ("_cdata",),
    "torch.autograd.graph.Node": ("next_functions", "register_prehook"),
    "torch._C._functions.AccumulateGrad": ("_set_sequence_nr",),  # one of many that have it
    # kernels, before and after fusion
    "torch._inductor.scheduler.BaseSchedulerNode": (
        "add_fake_dep",
        "ancestors",
        "get_buffer_names",
        "get_device",
        "get_name",
        "get_nodes",
        "get_operation_names",
        "get_outputs",
        "get_read_write_buffers_sizes",
        "is_extern",
        "is_foreach",
        "is_template",
        "mpi_node",
        "mutation_renames",
        "node",
        "read_writes",
        "scheduler",
        "unmet_dependencies",
    ),
    "torch._inductor.scheduler.Scheduler": (
        "name_to_buf",
        "name_to_fused_node",
        "nodes",
        "should_partition",
        "topological_sort_schedule",
    ),
    "torch._inductor.scheduler.SchedulerBuffer": ("defining_op", "get_name", "mpi_buffer", "node", "users"),
    "torch._inductor.scheduler.NodeUser": ("can_inplace", "node"),
    "torch._inductor.sizevars.SizeVarAllocator": ("shape_env",),
    "torch._inductor.memory.FreeableInputBuffer": ("get_name", "mpi_buffer"),
    "torch._inductor.memory.MemoryPlanningInfoForBuffer": ("size_free", "succ_nodes"),
    "torch._inductor.memory.MemoryPlanningInfoForNode": ("pred_buffers",),
    "torch._inductor.dependencies.ReadWrites": ("reads", "reads_and_writes"),
    "torch._inductor.dependencies.WeakDep": ("is_fake", "mutating_buf", "name"),
    "torch._inductor.ir.IRNode": ("get_origin_node", "origins"),
    "torch._inductor.ir.Buffer": (
        "get_inputs_that_alias_output",
        "get_mutation_names",
        "get_output_spec",
        "should_allocate",
    ),
    "torch._inductor.ir.NonOwningLayout": ("view",),
    "torch._inductor.ir.ExternKernel": ("constant_args", "op_overload"),
    "torch._inductor.graph.GraphLowering": (
        "codegen",
        "codegen_with_cpp_wrapper",
        "compile_to_module",
        "cpp_wrapper",
        "dep_size_hint_cache",
        "get_dep_size_hint",
        "get_output_names",
        "graph",
        "graph_inputs",
        "scheduler",
        "sizevars",
    ),
    "torch._inductor.fx_passes.reinplace.InplaceableOp": ("mutated_args",),
    "torch._inductor.custom_graph_pass.CustomGraphPass": ("uuid",),
}
"""Class -> attributes and methods of its objects. What an object has got from elsewhere stands in `MARKS`."""

MARKS: dict[str, tuple[str, ...]] = {
    "torch._dynamo.convert_frame._compile": (
        "cache_size",
        "code",
        "compile_id",
        "compiler_fn",
        "one_graph",
        "recompile_reason",
    ),
    "torch._dynamo.output_graph": ("_dynamo_source", "compile_subgraph_reason"),
    "torch._dynamo.eval_frame": ("_torchdynamo_disable", "_torchdynamo_orig_callable"),
}
"""Module -> attributes that it sets on objects of other classes; function -> local variables: its source names them."""

CLASSES: dict[str, str] = {"torch._inductor.virtualized.V.graph": "torch._inductor.graph.GraphLowering"}
"""What is there only inside a compile -> the class that it then has."""

VERSIONS: dict[str, tuple[str, str | None]] = {
    "torch._inductor.config:aten_distributed_optimizations.enable_simple_overlap": ("2.14", None),
    "torch._inductor.custom_graph_pass.CustomSchedulerPass": ("2.13", None),
    "torch._inductor.sizevars.SizeVarAllocator.size_hint": ("2.11", "2.11"),
    "torch.autograd.Function.apply.__func__": ("2.11", "2.13"),
    "torch.distributed._functional_collectives.all_gather_single": ("2.13", None),
    "torch.distributed._functional_collectives.reduce_scatter_single": ("2.13", None),
    "torch.distributed.all_gather_single": ("2.13", None),
    "torch.distributed.reduce_scatter_single": ("2.13", None),
}
"""Name (an attribute, or a key after a colon) -> the first torch that has it, and the last one; None: it still does."""
