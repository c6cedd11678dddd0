# SPDX-License-Identifier: Apache-2.0
"""The state of a run on disk, from which a later run continues to the same result.

In:    everything that changes during a run: tensors by name, and numbers (`Progress`).
Out:   a folder `state-STEP` with two files for each rank: `rank-RANK.safetensors`, and `rank-RANK.json`, sealed, with
       the numbers, what the run is, and the seal of the tensors. What all ranks have is in the first rank's file only.
Never: half a state that a later run would accept: a folder gets its name once all ranks have written, and only then are
       older states removed, but for the one before it. A damaged state: it is left out, with a warning, on all ranks.

A state is read back only with the same configuration, number of ranks, and model.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from farskip_compile.base.json_files import JsonReader, encode, flush, read_sealed, write_sealed
from farskip_compile.errors import ConfigError, DistillationError, FarSkipError, FarSkipWarning
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.causal.tensor_files import Seal, read_tensors, write_tensors

NAME = re.compile(r"state-(\d{1,12})")
ANEW = "resume=False starts anew; or another output folder"
SAME_RUN = "the same configuration, model and number of ranks; or resume=False, or another output folder"
T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """How far a run has come, in numbers."""

    taken: int
    """Steps."""
    tokens: int
    epoch: int
    batches: int
    """Consumed in this epoch, on this rank."""
    best_step: int
    waited: int
    """Evaluations since then."""
    best_score: float | None = None
    """None: there was no evaluation yet."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What was chosen before the first step, and is kept: the learning rate, beta2, figures of the fold."""

    def __post_init__(self) -> None:
        if min(self.taken, self.tokens, self.epoch, self.batches, self.best_step, self.waited) < 0:
            raise ValueError("it counts below zero")
        for name in ("learning_rate", "beta2"):
            if not isinstance(self.notes.get(name, 0.0), int | float | None):
                raise ValueError(f"its {name} is not a number")


@dataclass(frozen=True)
class RankRecord:
    """A file `rank-RANK.json`."""

    about: Mapping[str, Any]
    """What the run is: only an equal one can continue."""
    progress: Progress
    tensors: Seal


@dataclass(frozen=True)
class RestoredState:
    """What was read back."""

    progress: Progress
    tensors: Mapping[str, torch.Tensor]


def write_state(
    folder: Path,
    record: tuple[Mapping[str, Any], Progress],
    tensors: Mapping[str, torch.Tensor],
    ranks: TrainingRanks,
    before: Path | None,
) -> Path:
    """Write a state, on all ranks, and remove all others but the one `before` it.

    Args:
        folder: of all states.
        record: what the run is, and how far it has come.
        tensors: what this rank alone has, on the first rank also what all have.
        ranks: all of them call.
        before: the last state that was written or read.

    Raises:
        DistillationError: it can't be written.
    """
    about, progress = record
    target, temporary = folder / f"state-{progress.taken:08d}", folder / f".state-{progress.taken:08d}"
    with _writing(target):
        if ranks.rank == 0:
            _remove(temporary)
            temporary.mkdir(parents=True)
    ranks.barrier()
    seal = write_tensors(temporary / f"rank-{ranks.rank}.safetensors", tensors)
    content = encode(RankRecord(dict(about), progress, seal))
    write_sealed(temporary / f"rank-{ranks.rank}.json", content, error=DistillationError)
    ranks.barrier()
    with _writing(target):
        if ranks.rank == 0:
            _remove(target)  # damaged, or of a run that was not to go on
            temporary.rename(target)
            flush(folder)
            for path in _states(folder).values():
                if path not in (target, before):
                    with contextlib.suppress(OSError):
                        _remove(path)
    ranks.barrier()
    return target


def read_newest(
    folder: Path, ranks: TrainingRanks, about: Mapping[str, Any], take: Callable[[RestoredState], T]
) -> tuple[Path, T] | None:
    """The last state in `folder` that is whole on all ranks, and what `take` makes of it; None: there is no state.

    A state that is damaged, or that `take` refuses with a `DistillationError`, is left out with a warning.

    Raises:
        ConfigError: a state is another run's.
        DistillationError: there are states, and all are damaged.
    """
    found, damaged, limit = _states(folder), list[str](), -1.0
    while True:
        # the first rank says which one is next, since a shared folder may look different for a moment
        (step,) = ranks.sum(max((one for one in found if limit < 0 or one < limit), default=-1) * (ranks.rank == 0))
        if step < 0:
            break
        limit, path = step, found.get(int(step), folder / f"state-{int(step):08d}")
        problem: FarSkipError | None = None
        try:
            taken = take(_read(path, ranks, about))
        except (ConfigError, DistillationError) as error:
            problem = error
        refused, bad = ranks.sum(isinstance(problem, ConfigError), problem is not None)
        if not bad:
            return path, taken
        if refused:
            raise problem or ConfigError(f"{path} is the state of another run, on other ranks", way_out=SAME_RUN)
        damaged.append(f"{path.name}: {problem.reason if problem is not None else 'damaged for another rank'}")
        if problem is not None or ranks.rank == 0:
            warnings.warn(f"a damaged state is left out: {damaged[-1]}", FarSkipWarning, stacklevel=2)
    if damaged:
        raise DistillationError(
            f"all states in {folder} are damaged, so the run can't continue:\n  " + "\n  ".join(damaged), way_out=ANEW
        )
    return None


def _states(folder: Path) -> dict[int, Path]:
    try:
        paths = sorted(folder.iterdir(), key=lambda path: len(path.name))  # of two for one step, the one of our making
        return {int(match[1]): path for path in paths if (match := NAME.fullmatch(path.name))}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"can't read the folder {folder}: {error.strerror}", way_out="another folder") from error


def _read(path: Path, ranks: TrainingRanks, about: Mapping[str, Any]) -> RestoredState:
    first = _record(path / "rank-0.json")
    _compare(path, first.about, about, [key for key in about if key != "model"])  # of which each rank has its own
    own = first if ranks.rank == 0 else _record(path / f"rank-{ranks.rank}.json")
    _compare(path, own.about, about, [*about])
    if first.progress.taken != own.progress.taken:
        raise DistillationError(f"{path} is of {first.progress.taken} and {own.progress.taken} steps", way_out=ANEW)
    tensors = read_tensors(path / "rank-0.safetensors", first.tensors, ANEW)
    if own is not first:
        mine = read_tensors(path / f"rank-{ranks.rank}.safetensors", own.tensors, ANEW)
        tensors = {name: value for name, value in tensors.items() if not is_own(name)} | mine
    return RestoredState(own.progress, tensors)


def is_own(name: str) -> bool:
    """Whether this is the name of a tensor that each rank has for itself, whatever the model: `own/...`."""
    return name.startswith("own/")


def _record(file: Path) -> RankRecord:
    content = read_sealed(file, "state of a run", way_out=ANEW, error=DistillationError)
    return JsonReader(str(file), DistillationError, always=ANEW).decode(RankRecord, content)


def _compare(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], keys: list[str]) -> None:
    for key in keys:
        if theirs.get(key) != ours[key]:
            raise ConfigError(f"{path} is the state of a run with another {key}", way_out=SAME_RUN)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DistillationError(
            f"can't write {path}: {error.strerror}", way_out="room on the disk, and the right to write there"
        ) from error


def _remove(path: Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
