# SPDX-License-Identifier: Apache-2.0
"""Every private or semi-private PyTorch API that this package touches, and nothing else.

Contract: other modules import these names from this folder only, so that a new PyTorch release is checked in one place.
What Dynamo and AOTAutograd need stands here, all else in one file for each part of PyTorch; `__all__` is re-exported.
Checked by running on torch 2.11.0, 2.13.0 and 2.15.0; presence and signatures by reading on 2.12 and 2.14.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from farskip_compile.versions import VersionError, older_version

if too_old := older_version("torch", torch.__version__):  # before a private name is missing
    raise VersionError(too_old)

from torch import fx
from torch._dynamo import compiled_autograd, mark_dynamic
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.exc import BackendCompilerFailed, ShortenTraceback, TorchDynamoException
from torch._dynamo.output_graph import GraphCompileReason
from torch._dynamo.utils import get_compilation_metrics, get_optimize_ddp_mode, graph_break_reasons
from torch._guards import CompileContext
from torch._higher_order_ops.wrap import TagActivationCheckpoint, tag_activation_checkpoint
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._logging._internal import trace_log, trace_structured
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, statically_known_true
from torch.utils.checkpoint import CheckpointPolicy

PREFER_RECOMPUTE = CheckpointPolicy.PREFER_RECOMPUTE
CHECKPOINT = tag_activation_checkpoint
"""The higher-order operator of a checkpoint."""
POLICY = "_checkpoint_context_fn"
"""Key of the `meta` of its body: what makes the contexts of a selective policy."""

__all__ = [
    "CAPTURE_ERRORS",
    "BackendCompilerFailed",
    "CustomGraphPass",
    "HigherOrderOperator",
    "OpOverload",
    "OpOverloadPacket",
    "TorchDynamoException",
    "lookup_backend",
    "mark_dynamic",
]

CAPTURE_ERRORS = (TorchDynamoException, GuardOnDataDependentSymNode)
"""What `torch.compile(fullgraph=True)` raises for a model that can't be one graph. An operator whose shape depends on
data raises the second one, which Dynamo does not wrap where it is met while shapes are computed."""

TransparentError = ShortenTraceback
"""Base class of the exceptions that Dynamo hands to the user as they are, not wrapped in `BackendCompilerFailed`."""


def inductor_compiler(options: dict[str, Any], mode: str | None) -> Callable[..., Callable[..., Any]]:
    """Inductor with `options`, in force for the lazily compiled backward graph too.

    Raises:
        RuntimeError: an unknown mode or option, or an option of the wrong type.
    """
    compiler: Callable[..., Callable[..., Any]] = torch._TorchCompileInductorWrapper(mode, options, None)
    return compiler


def current_compile() -> tuple[str, object]:
    """Dynamo's id of the compile in progress (`0/1`), and a weak reference to it that outlives no other compile.

    The id alone does not do as an identity: it starts anew after `torch.compiler.reset()`. Both are empty outside of
    a compile. A restarted analysis (`0/0_1`) is the same compile.
    """
    context = CompileContext.try_get()
    return (str(context.compile_id), weakref.ref(context)) if context is not None else ("", None)


def ddp_splits_graphs() -> bool:
    """Whether Dynamo is about to cut the graph of an active `DistributedDataParallel` into buckets."""
    ddp = torch.nn.parallel.DistributedDataParallel
    return get_optimize_ddp_mode() == "ddp_optimizer" and ddp._get_active_ddp_module() is not None


def in_compiled_autograd() -> bool:
    """Whether what is compiled is a backward graph of `torch._dynamo.compiled_autograd`, which calls the backend with
    it as if it were a model."""
    return compiled_autograd.in_compiled_autograd_region


def graph_break_reason(module: fx.GraphModule) -> str | None:
    """Why and where Dynamo ended this graph, if it was by a graph break."""
    reason = getattr(module, "compile_subgraph_reason", None)
    return _describe(reason) if reason is not None and reason.graph_break else None


def callers_graph_breaks() -> list[str]:
    """Return the graph breaks because of which the frame in compilation is not in one graph with its callers.

    Dynamo ended a graph in a frame that is now on the Python stack, or gave that frame up as a whole (a break in a
    loop); innermost frames first. Breaks in other code of this process say nothing about this model.
    """
    found = []
    given_up = {
        (one.co_filename, one.co_firstlineno): one
        for one in get_compilation_metrics()
        if one.fail_type == "Unsupported" and not one.has_guarded_code  # not an error of the backend
    }
    ended = {(one.user_stack[0].filename, one.user_stack[0].name): one for one in graph_break_reasons if one.user_stack}
    frame = sys._getframe().f_back
    while frame is not None:
        code = frame.f_code
        if (failure := given_up.get((code.co_filename, code.co_firstlineno))) is not None:
            lines = [line.strip() for line in (failure.fail_reason or "").splitlines() if "visit: http" not in line]
            place = f" ({failure.fail_user_frame_filename}:{failure.fail_user_frame_lineno}: )"
            found.append(" ".join(line for line in lines if line)[:1000] + place)
        elif (reason := ended.get((code.co_filename, code.co_name))) is not None:
            found.append(_describe(reason))
        frame = frame.f_back
    return found


def _describe(reason: GraphCompileReason) -> str:
    # the explanation names the call that Dynamo did not trace until 2.14; from 2.15 on only the context after it does
    text, _, context = " ".join(str(reason.reason).split()).partition(" Developer debug context: ")
    text = f"{text[:300]} [{context.partition(', args=')[0][:100]}]" if context else text[:300]
    frame = next((f for f in reversed(reason.user_stack) if "/torch/" not in f.filename), None)
    place = f" ({frame.filename}:{frame.lineno}: {frame.line})" if frame is not None else ""
    last = reason.user_stack[-1] if reason.user_stack else frame
    inside = f", called in {last.filename}:{last.lineno}" if last is not None and last is not frame else ""
    return f"{text}{place}{inside}"


def failing_line(error: Exception, *, of_user: bool = False) -> str:
    """`file:line` of the innermost frame (that of the user's own code) at which Dynamo failed; empty if unknown."""
    frames = [f for f in getattr(error, "real_stack", None) or () if not (of_user and "/torch/" in f.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def is_resumed(module: fx.GraphModule) -> bool:
    """Whether the graph is the continuation of a frame after a graph break."""
    traces = (str(node.meta.get("stack_trace") or "") for node in module.graph.nodes if node.op != "placeholder")
    return any("torch_dynamo_resume_in" in trace for trace in traces)


def trace_artifact(name: str, payload: Callable[[], str], *, encoding: str = "json") -> None:
    """Write an artifact to the structured trace (`TORCH_TRACE`), where tlparse shows it: `json`, or plain `string`.

    It belongs to the compile in progress. Outside of one it belongs to none, and that is fine.
    """
    about = {"name": name, "encoding": encoding}
    trace_structured("artifact", metadata_fn=lambda: about, payload_fn=payload, expect_trace_id=False)


def is_tracing() -> bool:
    """Whether anybody listens to the structured trace."""
    return bool(trace_log.handlers)


def split_checkpoint_kwargs(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the keyword arguments of a `tag_activation_checkpoint` node: (the checkpoint's, the body's)."""
    checkpoint, body = TagActivationCheckpoint.divide_kwargs(kwargs)
    return checkpoint, body


def same_dim(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """Equal sizes, decided by what is known of them: branching on `a == b` of a SymInt would install a guard.

    Sizes are often equal although their expressions differ: of s tokens, padded to chunks of 8, there are
    `8 * (pad(s) // 8)`, and the guards of the graph say that this is s.
    """
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    left = a.node.expr if isinstance(a, torch.SymInt) else a
    right = b.node.expr if isinstance(b, torch.SymInt) else b
    return bool(left == right) or statically_known_true(a == b)


def is_data_dependent(size: int | torch.SymInt) -> bool:
    """Whether a size is known only when the data is: how many entries of a mask are true."""
    if not isinstance(size, torch.SymInt):
        return False
    node = size.node
    return any(map(node.shape_env.is_unbacked_symint, node.expr.free_symbols))


def codegen_of(graph: fx.Graph) -> fx.graph.CodeGen:
    """How a graph is written as Python; the getter to `fx.Graph.set_codegen`."""
    return graph._codegen


def keep_sources(twins: Mapping[fx.Node, fx.Node]) -> None:
    """Carry Dynamo's notes of where inputs come from over to copies of their nodes: AOTAutograd asks for them."""
    for node, twin in twins.items():
        if hasattr(node, "_dynamo_source"):
            twin._dynamo_source = node._dynamo_source


def is_module_state(placeholder: fx.Node) -> bool:
    """Whether a Dynamo placeholder is a parameter or buffer of a module, not an input of the call."""
    value = placeholder.meta.get("example_value", placeholder.meta.get("val"))
    if isinstance(value, torch.nn.Parameter):
        return True
    source = getattr(placeholder.meta.get("grapharg"), "source", None)
    guard_source = getattr(source, "guard_source", None)
    name = getattr(guard_source, "name", "")
    return "NN_MODULE" in name or "FSDP_MODULE" in name
