# SPDX-License-Identifier: Apache-2.0
"""Measuring on an accelerator, without one: a host that launches and a device that runs, each with a clock of its own.

`Machine` is the oracle: it says when each call of a stream begins and ends, from the seconds that the host needs to
launch it and the device to run it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from farskip_compile.costs import load_profile
from farskip_compile.measure.calibrate import kernels, main, stopwatch
from farskip_compile.measure.calibrate.collectives import Collectives
from farskip_compile.measure.calibrate.kernels import ProductBench
from farskip_compile.measure.calibrate.stopwatch import AHEAD, LEAST, Budget, Stopwatch
from tests.calibrate.test_measuring import TINY

CUDA = torch.device("cuda")
PRODUCT = 0.25e-3
FIRST = 0.3
"""Seconds that the first product of a process takes the host, which loads a library for it."""


class Machine:
    """One stream; seconds since the same moment on both sides."""

    def __init__(self, host: float = 10e-6) -> None:
        self.launching, self.host, self.device, self.loaded = host, 0.0, 0.0, False

    def run(self, seconds: float) -> None:
        self.host += self.launching
        self.device = max(self.device, self.host) + seconds

    def wait(self, *_: Any) -> None:
        self.host = max(self.host, self.device)

    def product(self, *_: Any) -> None:
        self.host += 0.0 if self.loaded else FIRST
        self.loaded = True
        self.run(PRODUCT)

    def event(self, *_: Any, enable_timing: bool) -> Any:
        assert enable_timing
        found = SimpleNamespace(at=0.0)

        def record() -> None:
            found.at = max(self.device, self.host)

        def synchronize() -> None:
            self.host = max(self.host, found.at)

        found.record, found.synchronize = record, synchronize
        found.elapsed_time = lambda later: 1e3 * (later.at - found.at)
        return found


def watch_on(machine: Machine, patched: pytest.MonkeyPatch) -> Stopwatch:
    fake = SimpleNamespace(
        Event=machine.event,
        accelerator=SimpleNamespace(synchronize=machine.wait),
        mm=machine.product,
        ones=lambda *sides, device: None,
    )
    patched.setattr(stopwatch, "torch", fake)
    return Stopwatch(CUDA)


@given(st.floats(1e-6, 5e-3), st.floats(1e-6, 2e-5))
@example(1e-6, 2e-5)  # a hundred calls in a row, each of which the host needs longest for
def test_the_time_is_the_devices_however_slowly_the_host_launches(device: float, host: float) -> None:
    machine = Machine(host)
    with pytest.MonkeyPatch.context() as patched:
        watch = watch_on(machine, patched)
        times = watch.time(lambda: machine.run(device), Budget(0.1, 1), before=lambda: machine.run(1e-4))
    assert len(times.seconds) >= LEAST
    assert times.seconds == pytest.approx([device] * len(times.seconds), rel=1e-6)


def test_what_waits_for_the_device_is_timed_without_a_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(host=5e-6)
    watch = watch_on(machine, monkeypatch)

    def read() -> None:
        machine.run(20e-6)
        machine.wait()

    assert watch.time(read, Budget(0.1, 1), waits=True).median == pytest.approx(25e-6)
    watch.span(lambda: None)
    before = machine.device
    watch.span(lambda: None)
    assert machine.device - before > 0.9 * AHEAD  # which all others have


def test_a_collective_is_timed_in_the_stream_after_one_that_brings_the_ranks_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, called = Machine(host=30e-6), []
    watch = watch_on(machine, monkeypatch)
    ranks = SimpleNamespace(device=CUDA, size=2, rank=0, barrier=machine.wait, slowest=lambda seconds: seconds)
    found = Collectives(ranks)  # type: ignore[arg-type]
    found.watch = watch

    def call() -> None:
        called.append(machine.host)
        machine.run(12e-6)

    assert found._time(call, 4, 3) == pytest.approx([12e-6] * 3, rel=1e-5)
    assert len(called) == 3 * (4 + 1)


def test_products_are_called_by_what_they_are_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "Pool", lambda *_: None)

    def name(device: str, dtype: torch.dtype) -> str:
        return ProductBench(Stopwatch(torch.device(device)), dtype, TINY, 0.0).name

    assert (name("cuda", torch.float32), name("cuda", torch.bfloat16)) == ("float32", "bfloat16")
    monkeypatch.setattr(kernels, "tf32_allowed", lambda: True)
    assert (name("cuda", torch.float32), name("cuda", torch.bfloat16)) == ("tfloat32", "bfloat16")
    assert name("cpu", torch.float32) == "float32"  # where no setting makes it anything else


@pytest.mark.parametrize(
    ("device", "asked", "wanted"),
    [
        ("cuda", {}, (torch.bfloat16, torch.float32)),
        ("cpu", {}, (torch.float32,)),
        ("cuda", {"dtypes": (torch.float16,)}, (torch.float16,)),
    ],
)
def test_types_that_are_measured(device: str, asked: Any, wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compute(self: Any, profile: Any, dtypes: Any, seconds: float) -> Any:
        seen.append(tuple(dtypes))
        return profile

    monkeypatch.setattr(main._Run, "compute", compute)
    monkeypatch.setattr(main, "_name", lambda device: "NVIDIA H100 80GB HBM3")
    found = main.measure(device=device, base=load_profile("h100"), **asked)
    assert seen == [wanted]
    assert found.profile.intra_node == load_profile("h100").intra_node
