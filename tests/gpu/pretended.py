# SPDX-License-Identifier: Apache-2.0
"""Let Inductor compile for a GPU that is not there.

In:    a process in which `before_torch.load_device` was called, and triton can be imported; the name of a device.
Out:   within the block: torch, Inductor and Triton take this machine for one with that device. Fake tensors on "cuda"
       can be made and compiled for; programs are generated and kernels compiled as there.
Never: runs anything on a device; keeps a patch after the block, but for torch's guard, which stays for the process.

The properties of devices are those of their vendors' data sheets; Inductor reads no other figure of a device while it
plans (nothing is measured: autotuning by running kernels is what can't be had here).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch


@dataclass(frozen=True)
class Device:
    """What Inductor and Triton ask of a device."""

    name: str
    backend: str
    """Of Triton: `cuda` or `hip`."""
    arch: int | str
    """Of Triton's target."""
    capability: tuple[int, int]
    processors: int
    warp: int
    shared: int
    """Bytes of shared memory that a block may ask for."""
    memory: int
    kind: str
    """What its kernels compile to."""


DEVICES = {
    "h100": Device("NVIDIA H100 80GB HBM3", "cuda", 90, (9, 0), 132, 32, 232_448, 80 << 30, "cubin"),
    "b200": Device("NVIDIA B200", "cuda", 100, (10, 0), 148, 32, 232_448, 180 << 30, "cubin"),
    "mi300x": Device("AMD Instinct MI300X", "hip", "gfx942", (9, 4), 304, 64, 65_536, 192 << 30, "hsaco"),
}
ROCM = "7.0"


@contextlib.contextmanager
def pretended(name: str) -> Iterator[Device]:
    """See the module's contract."""
    device = DEVICES[name]
    torch._C._ensureCUDADeviceGuardSet()
    with contextlib.ExitStack() as stack:
        for owner, attributes in _patches(device):
            for attribute, value in attributes.items():
                stack.enter_context(mock.patch.object(owner, attribute, value))
        stack.enter_context(_driver(device))
        stack.enter_context(torch._inductor.config.patch(_settings()))
        for cached in _cached():
            cached.cache_clear()
            stack.callback(cached.cache_clear)
        yield device


def _properties(device: Device) -> SimpleNamespace:
    major, minor = device.capability
    return SimpleNamespace(
        name=device.name,
        major=major,
        minor=minor,
        multi_processor_count=device.processors,
        warp_size=device.warp,
        gcnArchName=f"{device.arch}:sramecc+:xnack-" if device.backend == "hip" else "",
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        regs_per_multiprocessor=65_536 * (2 if device.backend == "hip" else 1),
        shared_memory_per_block=49_152,
        shared_memory_per_block_optin=device.shared,
        L2_cache_size=50 << 20,
        total_memory=device.memory,
        is_integrated=False,
        uuid="none",
    )


def _patches(device: Device) -> list[tuple[Any, Mapping[str, Any]]]:
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.runtime import triton_helpers
    from torch._inductor.select_algorithm import AlgorithmSelectorCache
    from torch._subclasses.fake_tensor import FakeTensorMode

    properties = _properties(device)

    def always(value: Any) -> Any:
        return lambda *args, **kwargs: value

    def static(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: staticmethod(value) for name, value in values.items()}

    asked = {
        "is_available": always(True),
        "device_count": always(1),
        "current_device": always(0),
        "get_device_properties": always(properties),
        "synchronize": always(None),
        "set_device": always(None),
        "is_bf16_supported": always(True),
    }
    switches = {"exchange_device": always(0), "maybe_exchange_device": always(0)}
    found: list[tuple[Any, Mapping[str, Any]]] = [
        (
            torch.cuda,
            {
                **asked,
                **{f"_{name}": value for name, value in switches.items()},
                "is_initialized": always(True),
                "_lazy_init": always(None),
                "get_device_capability": always(device.capability),
                "get_device_name": always(device.name),
                "get_rng_state": always(torch.zeros(16, dtype=torch.uint8)),
                "set_rng_state": always(None),
            },
        ),
        (CudaInterface, static({**asked, **switches, "get_raw_stream": always(0)})),
        (CudaInterface.Worker, static({"get_device_properties": always(properties), "current_device": always(0)})),
        # asked of a build with CUDA, as a capture needs PyTorch's own allocator
        (torch._inductor.cudagraph_utils, {"check_caching_allocator_for_cudagraphs": always(None)}),
        # what is available is not to be used by fake tensors
        (FakeTensorMode, {"avoid_device_init": property(lambda self: True)}),
        (triton_helpers, {"set_driver_to_gpu": always(None)}),
        (AlgorithmSelectorCache, {"__call__": _first_choice(AlgorithmSelectorCache.__call__)}),
    ]
    return [*found, (torch.version, {"hip": ROCM})] if device.backend == "hip" else found


def _first_choice(choose: Any) -> Any:
    """Among the ways to compute a product, nothing tells which is fastest."""

    def first(self: Any, name: str, choices: list[Any], *args: Any, **kwargs: Any) -> Any:
        return choose(self, name, choices[:1], *args, **kwargs)

    return first


@contextlib.contextmanager
def _driver(device: Device) -> Iterator[None]:
    """Triton's driver of the device."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    limits = {
        "max_shared_mem": device.shared,
        "multiprocessor_count": device.processors,
        "max_num_regs": 65_536,
        "warpSize": device.warp,
    }
    ours = SimpleNamespace(
        get_current_target=lambda: GPUTarget(device.backend, device.arch, device.warp),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_current_stream=lambda index=0: 0,
        get_device_interface=lambda: torch.cuda,
        utils=SimpleNamespace(get_device_properties=lambda index: limits),
    )
    before = driver._active
    driver.set_active(ours)
    try:
        yield
    finally:
        driver._active = before


def _settings() -> dict[str, Any]:
    """What Inductor would ask a real device for, or keep between devices."""
    launchers = (
        "use_static_cuda_launcher",
        "use_static_triton_launcher",
        "use_static_cuda_launcher_for_user_defined",
    )
    known = torch._inductor.config.get_config_copy()
    return {
        **{name: False for name in launchers if name in known},
        "joint_graph_constant_folding": False,  # runs what it folds
        "shape_padding": False,  # measures whether it pays
        "compile_threads": 1,
        "force_disable_caches": True,
    }


def _cached() -> list[Any]:
    """Answers about the device that are remembered, and results of operators on it."""
    import torch._inductor.utils as inductor
    import torch.utils._triton as triton
    from torch._inductor.runtime.hints import DeviceProperties
    from torch._subclasses.fake_tensor import FakeTensorMode

    names = {
        inductor: ("is_big_gpu", "get_max_num_sms"),
        triton: ("has_triton", "_device_supports_tma", "has_triton_tma_device"),
        DeviceProperties: ("create",),
    }
    found = [getattr(owner, name, None) for owner, each in names.items() for name in each]
    found.append(FakeTensorMode)
    return [one for one in found if hasattr(one, "cache_clear")]
