# SPDX-License-Identifier: Apache-2.0
"""The compiles of each function of each model, counted alike on all ranks.

In:    a compiled graph, and the options that all ranks must have in common.
Out:   the same callable. While it runs, `frame_of` gives the frame that an announcement (`ranks.announce`) is about.
Never: communicates (`ranks.agree` does), or keeps a model alive.

A *frame*, Dynamo's word, is one function of one model, over all of its compiles in this process. The graph of a frame
is not enough to know what a rank runs: ranks that have compared the graphs of two options, each of them once, must
compare again when one of them goes back to the other graph. So each frame has an *epoch* on each process group:
1. the epochs of a group are numbered, over all frames;
2. a frame begins a new epoch when it runs for the first time, and when it runs with other options than last. The ranks
   compare all graphs of the frame anew;
3. a recompile with the options that the frame ran with last begins none: one rank alone may need it, for another size
   or after `torch.compiler.reset()`.

Each run of a graph launches collectives of its groups, in the same order on all ranks, so ranks that run the same
program begin the same epochs. The runs of a frame are counted for the same reason: of two ranks at the same run of a
frame, neither may be in an earlier epoch.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from farskip_compile._compat.distributed import world_group
from farskip_compile._compat.runs import traced, traced_function

SHAPE_DEPENDENT = "plan"
"""The name of the one common option that may differ between the graphs of one frame, for each size of its inputs."""


@dataclass(frozen=True)
class Epoch:
    """An epoch that all ranks of a process group have agreed on."""

    number: int
    options: Mapping[str, Any] | None


@dataclass
class Frame:
    """One function of one model, over all of its compiles."""

    runs: int = 0
    options: Mapping[str, Any] | None = None
    """The options of the compile that runs, or ran last."""
    epochs: dict[str, Epoch] = field(default_factory=dict)
    """The last epoch on each process group."""
    _checked: set[str] = field(default_factory=set)
    _running: object = None
    _world: weakref.ref[Any] | None = None

    def begin(self, compiled: _Compile) -> None:
        """Count a run of `compiled`, and forget what was compared if the ranks have to compare it again."""
        self.runs += 1
        if self._running is compiled:
            return
        if not compiled.has_run or compiled.options != self.options:
            self._checked.clear()
        compiled.has_run = True
        self._running, self.options = compiled, compiled.options

    def knows(self, text: str) -> bool:
        """Return whether the ranks have compared `text` under the current options."""
        return text in self._checked and world_group() is not None and self._is_of_this_world()

    def note(self, text: str) -> None:
        """Remember that the ranks have compared `text`."""
        self.forget_other_worlds()
        self._checked.add(text)

    def forget_other_worlds(self) -> None:
        """Drop everything that was agreed on before the default process group was made anew."""
        if not self._is_of_this_world():
            self._checked.clear()
            self.epochs.clear()
            world = world_group()
            self._world = weakref.ref(world) if world is not None else None

    def _is_of_this_world(self) -> bool:
        return (self._world() if self._world is not None else None) is world_group()


@dataclass(eq=False)
class _Compile:
    """One compile of a frame."""

    options: Mapping[str, Any]
    has_run: bool = False


_frames: weakref.WeakKeyDictionary[Any, dict[str, Frame]] = weakref.WeakKeyDictionary()
_functions: dict[str, Frame] = {}
"""The frames of functions that belong to no module."""
_unknown = Frame()
"""The frame of graphs that this process has not compiled: packages, and what vLLM has cached."""
_running = threading.local()
_last_by_group: dict[str, Frame] = {}
"""The frame whose forward graph was the last to announce itself on each process group: backward graphs belong to it."""
_last: list[Frame] = []
"""The frame that ran last, if any."""


def traced_frame() -> Frame:
    """Return the frame that Dynamo compiles in this thread."""
    owner, function = traced(), traced_function()
    frames = _functions if owner is None else _frames.setdefault(owner, {})
    return frames.setdefault(function, Frame())


def counted(
    compiled: Callable[..., Any],
    frame: Frame,
    common: Mapping[str, Any],
    check: Callable[[Frame], None] = lambda frame: None,
) -> Callable[..., Any]:
    """Return `compiled` as a compile of `frame`, with `common` options. `check` is called before each run."""
    this_compile = _Compile({name: value for name, value in common.items() if name != SHAPE_DEPENDENT})

    def run(*args: Any) -> Any:
        frame.begin(this_compile)
        _last[:] = [frame]
        check(frame)
        outer, _running.frame = getattr(_running, "frame", None), frame
        try:
            return compiled(*args)
        finally:
            _running.frame = outer

    return run


def frame_of(groups: Sequence[str], *, backward: bool) -> Frame:
    """Return the frame of the graph that runs in this thread and communicates with `groups`.

    A backward graph runs in a thread of autograd. It belongs to the frame that was last to run forward on one of its
    groups: a choice that all ranks of the group make alike.
    """
    frame: Frame | None = getattr(_running, "frame", None)
    if frame is not None and not backward:
        _last_by_group.update(dict.fromkeys(groups, frame))
        return frame
    for group in groups:
        if group in _last_by_group:
            return _last_by_group[group]
    return _last[0] if _last else _unknown


_lock = threading.Lock()
_numbers: dict[str, int] = {}
"""The number of the last epoch on each process group."""
_numbered: weakref.ref[Any] | None = None
"""The default process group when the epochs were numbered."""


def next_number(group: str) -> int:
    """Return the number of the next epoch on `group`."""
    with _lock:
        _forget_other_worlds()
        return _numbers.get(group, 0) + 1


def agree_on(frame: Frame, group: str, epoch: Epoch) -> None:
    """Remember that all ranks of `group` have begun `epoch` of `frame`."""
    with _lock:
        _forget_other_worlds()
        _numbers[group] = max(_numbers.get(group, 0), epoch.number)
        frame.epochs[group] = epoch


def _forget_other_worlds() -> None:
    global _numbered
    world = world_group()
    if (_numbered() if _numbered is not None else None) is not world:
        _numbers.clear()
        _last_by_group.clear()
        _numbered = weakref.ref(world) if world is not None else None
