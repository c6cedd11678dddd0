# SPDX-License-Identifier: Apache-2.0
"""accelerate: `Accelerator(dynamo_plugin=farskip_plugin(connectivity="full"))`.

In:    options of the backend.
Out:   what `Accelerator` takes as `dynamo_plugin`: models that it prepares are compiled by this backend, as the last of
       the things that it puts around them.
Never: adds to accelerate's enumeration of backends, or changes anything else of it: `--dynamo_backend farskip` and
       `torch_compile_backend="farskip"` stay errors of accelerate's. Is made where accelerate would not look at it:
       all accelerators of a process share what the first one was given.

`TorchDynamoPlugin` turns the name of its backend into a member of that enumeration; this one keeps the name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, TorchDynamoPlugin

from farskip_compile.base.extras import check_version
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.errors import ConfigError


class _Name(str):
    """A backend that accelerate asks for its `value`, as for a member of its enumeration."""

    @property
    def value(self) -> str:
        return str(self)


@dataclass
class _Plugin(TorchDynamoPlugin):
    farskip_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backend = "inductor"  # any that accelerate knows: the rest is read from arguments and environment
        super().__post_init__()
        self.backend = _Name("farskip")

    def to_kwargs(self) -> dict[str, Any]:
        """What `torch.compile` is called with, when a model is prepared."""
        return {
            "backend": "farskip",
            # DDP's own forward breaks the graph outside of the model; a model in pieces is refused all the same
            "fullgraph": PartialState().distributed_type == DistributedType.NO,
            "dynamic": self.dynamic,
            "options": dict(self.farskip_options),
        }


def farskip_plugin(*, dynamic: bool | None = None, **options: Any) -> TorchDynamoPlugin:
    """For `Accelerator(dynamo_plugin=...)`.

    Args:
        dynamic: as for `torch.compile`.
        options: fields of `FarSkipConfig`.

    Raises:
        ConfigError: unknown or wrong options; or an `Accelerator` was made before, with another plugin or none, which
            all later ones of the process share.
    """
    check_version("accelerate")
    FarSkipConfig.from_options(options)
    plugin = _Plugin(dynamic=dynamic, farskip_options=options)
    shared = AcceleratorState._shared_state.get("dynamo_plugin")
    if shared is not None and shared != plugin:
        raise ConfigError(
            "an Accelerator was made before in this process, and accelerate takes no plugin from a later one, whose "
            "models would run in their original wiring",
            way_out="give farskip_plugin to the first Accelerator (a Trainer makes one, too); or compile in place "
            'before it is prepared: model.compile(backend="farskip", fullgraph=True)',
        )
    return plugin
