# SPDX-License-Identifier: Apache-2.0
"""What a process does in the tests of faults that need no other rank: scenes for `run_scenes`.

Where a process group is needed so that scheduling runs, it has one rank. Each scene returns what the test judges.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import fx, nn

import farskip_compile
from farskip_compile._compat.distributed import process_group_store
from farskip_compile.models import FarSkipForm, build
from farskip_compile.records.announcement import Announcement
from farskip_compile.records.schedule import ScheduleReport
from tests.faults.programs import Exchanging, Fault, broken, results

IDS = torch.arange(12).view(2, 6)
JOIN_SECONDS = 60.0
CLONE_NEWNS, MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 1, 32, 4096, 16384, 1 << 18


def small_model(seed: int = 0) -> nn.Module:
    return build("llama4", seed=seed, dtype=torch.float64, vocab_size=32, hidden_size=32, layers=("moe", "moe"))


def rewired_again(rank: int, fault: Fault) -> dict[str, Any]:
    """A model is rewired, something goes wrong, and it is called again."""
    model = small_model()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    graphs: list[tuple[str, str]] = []
    rewiring = farskip_compile.backend(inner="eager")

    def spy(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        before = _text(module)
        try:
            return rewiring(module, inputs)
        finally:
            graphs.append((before, _text(module)))

    torch.compiler.reset()
    compiled = torch.compile(model, backend=spy, fullgraph=True)
    with torch.no_grad():
        raised = _raised_by(lambda: compiled(IDS), fault)
        output, expected = compiled(IDS), FarSkipForm(model)(IDS)
    return {
        "raised": raised,
        "graph as it was": graphs[0][0] == graphs[0][1],
        "rewired then": graphs[-1][0] != graphs[-1][1],
        "model as it was": all(torch.equal(value, state[name]) for name, value in model.state_dict().items()),
        "right": torch.equal(output, expected),
    }


def scheduled_again(rank: int, folder: str, fault: Fault, options: dict[str, Any]) -> dict[str, Any]:
    """A model is compiled by Inductor and scheduled, something goes wrong, and it is called again.

    Args:
        rank: of this process.
        folder: Inductor's cache from now on.
        fault: what goes wrong.
        options: of the backend. Schedules are told of once for equal graphs.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    torch.compiler.reset()
    farskip_compile.reports().clear()
    model = Exchanging()
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
    raised = _raised_by(lambda: results(compiled), fault)
    found, expected = results(compiled), results(model)
    return {
        "raised": raised,
        "right": all(torch.allclose(one, other) for one, other in zip(found, expected, strict=True)),
        "scheduled": [report.phase for report in farskip_compile.reports().schedules],
    }


def _text(module: fx.GraphModule) -> str:
    return f"{module.graph}\n{sorted(module._modules)}"


def _raised_by(call: Callable[[], Any], fault: Fault) -> str:
    try:
        with broken(fault):
            call()
    except BaseException as error:
        return f"{type(error).__name__}: {error}".removesuffix(": ")
    return "nothing"


def two_configurations(rank: int) -> dict[str, Any]:
    """Two models in one process, in turn."""
    torch.compiler.reset()
    farskip_compile.reports().clear()
    runs = [_Run(small_model(0), "full"), _Run(small_model(1), "mlp")]
    for _ in range(2):
        for run in runs:
            run()
    return _judged(runs)


def two_threads(rank: int, same_model: bool) -> dict[str, Any]:
    """Two models, or one compiled twice, in two threads that begin at the same time."""
    torch.compiler.reset()
    farskip_compile.reports().clear()
    first = small_model(0)
    runs = [_Run(first, "full"), _Run(first if same_model else small_model(1), "mlp")]
    together = threading.Barrier(len(runs))

    def run_it(run: _Run) -> None:
        together.wait()
        for _ in range(3):
            run()

    _in_threads([lambda run=run: run_it(run) for run in runs])
    return _judged(runs)


class _Run:
    """A compiled model, its outputs and its reports."""

    def __init__(self, model: nn.Module, connectivity: str) -> None:
        self.connectivity = connectivity
        self.reports: list[Any] = []
        self.outputs: list[torch.Tensor] = []
        options = {"connectivity": connectivity, "inner": "eager", "on_report": self.reports.append}
        self.compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        self.oracle = FarSkipForm(model, connectivity=connectivity)

    def __call__(self) -> None:
        with torch.no_grad():
            self.outputs.append(self.compiled(IDS))


def _judged(runs: Sequence[_Run]) -> dict[str, Any]:
    with torch.no_grad():
        expected = [run.oracle(IDS) for run in runs]
    return {
        "right": all(torch.equal(one, right) for run, right in zip(runs, expected, strict=True) for one in run.outputs),
        "outputs": [len(run.outputs) for run in runs],
        "differ": not torch.equal(*expected),
        "reports": [[(one.config["connectivity"], str(one.outcome)) for one in run.reports] for run in runs],
        "kept": sorted(one.config["connectivity"] for one in farskip_compile.reports().compiles),
    }


def two_threads_scheduled(rank: int, number: int = 2) -> dict[str, Any]:
    """Models of different depth, trained in threads that begin at the same time; Inductor compiles them."""
    torch.compiler.reset()
    farskip_compile.reports().clear()
    models = [Exchanging(exchanges=2 + index) for index in range(number)]
    expected = [results(model) for model in models]
    found: list[list[torch.Tensor]] = [[] for _ in models]
    together = threading.Barrier(number)

    def run_it(index: int) -> None:
        compiled = torch.compile(models[index], backend="farskip", fullgraph=True)
        together.wait()
        found[index] = results(compiled)

    _in_threads([lambda index=index: run_it(index) for index in range(number)])
    return {
        "right": all(
            len(some) == len(right) and all(map(torch.allclose, some, right))
            for some, right in zip(found, expected, strict=True)
        ),
        "launches": sorted(sum(map(len, one.orders.values())) for one in farskip_compile.reports().schedules),
    }


def opposite_threads(rank: int) -> list[str]:
    """On each of two ranks two threads, each with a process group of its own; the ranks begin with different ones."""
    groups = [dist.new_group([0, 1]).group_name for _ in range(2)]
    if rank == 1:
        groups.reverse()
    texts = [
        Announcement(ScheduleReport("inference", {group: ["all_reduce sum float32"]})).to_text() for group in groups
    ]
    errors: list[str] = []

    def announce(text: str) -> None:
        try:
            torch.ops.farskip.announce(text)
        except Exception as error:
            errors.append(str(error))

    threads = [threading.Thread(target=announce, args=(text,), daemon=True) for text in texts]
    first = process_group_store(groups[0])
    assert first is not None
    threads[0].start()
    first.store.wait([f"farskip/at/{first.rank}"])  # the first one waits for the other rank, which is elsewhere
    threads[1].start()
    for thread in threads:
        thread.join(JOIN_SECONDS)
        assert not thread.is_alive(), "threads wait for each other"
    return errors


def _in_threads(calls: Sequence[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_SECONDS)
        assert not thread.is_alive(), "threads wait for each other"
    if errors:
        raise errors[0]


def make_read_only(rank: int, folder: str) -> str:
    """Let nothing be written to `folder`, which is to be Inductor's cache; how that was done.

    By a mount, for this process alone, if it may mount: permissions would not do, because root ignores them. Otherwise
    the path of the cache leads through a regular file, so that no folder can be made there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    path = folder.encode()
    done = (
        libc.unshare(CLONE_NEWNS) == 0
        and libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
        and libc.mount(path, path, None, MS_BIND, None) == 0
        and libc.mount(b"none", path, None, MS_BIND | MS_REMOUNT | MS_RDONLY, None) == 0
    )
    if done:
        return "a read-only mount"
    file = Path(folder) / "file"
    file.touch()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(file / "cache")
    return "a path behind a regular file"
