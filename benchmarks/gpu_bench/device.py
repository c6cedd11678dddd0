# SPDX-License-Identifier: Apache-2.0
"""All that differs between a GPU and the CPU of a dry run.

In:    the kind of device.
Out:   its names, how to wait for it, its peak of memory, the backend of a real group, and how a collective is in
       flight: beside the compute that is launched after it, until it is waited for.
Never: decides what is measured; gives a figure for memory, or for the device itself, in a dry run.

On a GPU a flight is work in a stream of its own: it starts when the current stream has come to the launch, and a wait
holds up the current stream, not the host, as with NCCL. On a CPU it is a thread that sleeps, and a wait holds up the
program, as with gloo.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch

Wait = Callable[[], object]
"""Makes what is launched next come after a collective."""


class Device(Protocol):
    """See the module's contract."""

    kind: str
    """As torch calls it."""
    backend: str
    """Of a process group of real ranks."""
    dry: bool
    """Nothing measured here is a figure of a GPU."""

    def name(self) -> str:
        """For people."""

    def settle(self) -> None:
        """Wait until everything that was launched is done."""

    def start_peak(self) -> None:
        """Forget the most memory that was held so far."""

    def peak(self) -> int | None:
        """Bytes: the most that was held since."""

    def fly(self, kind: str, move: Callable[[], None], seconds: float, blocks: int) -> Wait:
        """Move data and take so long, beside what is launched next; flights follow each other."""

    def building(self) -> contextlib.AbstractContextManager[None]:
        """Around compiles."""


class Gpu:
    """One device of CUDA."""

    kind, backend, dry = "cuda", "nccl", False

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream(priority=-1)  # its few blocks must not wait for a large product

    def name(self) -> str:
        """As the driver calls it."""
        return str(torch.cuda.get_device_name())

    def settle(self) -> None:
        """Of all streams."""
        torch.cuda.synchronize()

    def start_peak(self) -> None:
        """Of what torch has allocated."""
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        """Of what torch has allocated."""
        return int(torch.cuda.max_memory_allocated())

    def fly(self, kind: str, move: Callable[[], None], seconds: float, blocks: int) -> Wait:
        """In a stream that follows the current one as far as it has come."""
        from gpu_bench.spin import spin

        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            move()
            if seconds:
                spin(kind, seconds, blocks)
            landed = self._stream.record_event()
        return lambda: torch.cuda.current_stream().wait_event(landed)

    def building(self) -> contextlib.AbstractContextManager[None]:
        """As usual."""
        return contextlib.nullcontext()


class Cpu:
    """The processor, for a dry run."""

    kind, backend, dry = "cpu", "gloo", True

    def __init__(self) -> None:
        self._link = ThreadPoolExecutor(max_workers=1)

    def name(self) -> str:
        """Its kind."""
        return platform.processor() or platform.machine()

    def settle(self) -> None:
        """A call has ended when it returns."""

    def start_peak(self) -> None:
        """Nothing counts."""

    def peak(self) -> int | None:
        """Not known."""
        return None

    def fly(self, kind: str, move: Callable[[], None], seconds: float, blocks: int) -> Wait:
        """In a thread that takes one flight after another."""

        def work() -> None:
            move()
            time.sleep(seconds)

        return self._link.submit(work).result

    def building(self) -> contextlib.AbstractContextManager[None]:
        """With all kernels of a program in one C++ file: each costs seconds, whatever is in it."""
        from tests.one_build import kernels_in_one_build

        return kernels_in_one_build()


def device_of(*, dry_run: bool) -> Device:
    """The GPU, or the CPU of a dry run.

    Raises:
        RuntimeError: no GPU was found.
    """
    if dry_run:
        return Cpu()
    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no GPU; `--dry-run` runs everything on the CPU, and measures nothing")
    return Gpu()
