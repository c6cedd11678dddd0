"""Is a module compiled already? The three ways to compile one leave three different traces."""

from __future__ import annotations

from torch import nn
from torch._dynamo import OptimizedModule


def is_compiled(module: nn.Module) -> bool:
    """By `torch.compile(module)`, `module.compile()` or `module.forward = torch.compile(module.forward)`."""
    return (
        isinstance(module, OptimizedModule)
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")
    )
