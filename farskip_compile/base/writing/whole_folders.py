# SPDX-License-Identifier: Apache-2.0
"""The folder of a checkpoint, which appears whole or not at all.

In:    the folder, and functions that write files into another one.
Out:   `FolderInTheMaking`: a temporary folder (`path`), into which any number of ranks write; `finish` puts it in its
       place.
Never: a folder from which somebody could load weights without what belongs to them, whatever ends the process, and
       whenever; another file of the user's changed.

Algorithm of `finish`, once all is written:
1. Have the system write each file, and each name, to its disk.
2. If the folder was not there, or was empty and no mount: the temporary one, which stands beside it, gets its name.
3. Else the temporary one stands in it, and its files are moved. Without `config.json` nothing loads a checkpoint of
   transformers, without weights nothing loads any: `config.json` is removed first, then all weights that were there;
   what is new comes in the opposite order, weights behind manifests, `config.json` at the end. In between the folder is
   no checkpoint.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from farskip_compile.base.json_files import flush
from farskip_compile.base.writing.locks import TEMPORARY, Busy, hold, remove

ENTRY = "config.json"
WEIGHTS = re.compile(r"(model|pytorch_model)([-.].*)?\.(safetensors|bin)(\.index\.json)?")
"""Names of files with weights, and of lists of them, that this package and transformers load."""


@dataclass
class FolderInTheMaking:
    """A folder that is being written.

    Args:
        target: where it is to be.
        token: hexadecimal; different for each, the same on all ranks.
        is_there: whether `target` itself stays: something is in it already, or it can't be replaced.
    """

    target: Path
    token: str
    is_there: bool
    _descriptor: int | None = None

    @classmethod
    def of(cls, target: Path) -> FolderInTheMaking:
        """Begin the next content of `target`, with a new token."""
        target = target.resolve()  # where a link leads
        in_place = target.is_dir() and (
            any(target.iterdir()) or target.is_mount() or not os.access(target.parent, os.W_OK)
        )
        return cls(target, f"{secrets.randbits(48):012x}", in_place)

    @property
    def path(self) -> Path:
        """The folder that files are written to until `finish`."""
        name = f".{self.target.name}.{self.token}.writing"
        return self.target / name if self.is_there else self.target.parent / name

    def begin(self) -> None:
        """Make `path`; remove those that killed processes have left there.

        Raises:
            OSError: it can't be made.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for entry in self.path.parent.glob(f".{self.target.name}.*.writing"):
            if TEMPORARY.fullmatch(entry.name) and entry.is_dir():
                _remove_abandoned(entry)
        self.path.mkdir()
        self._descriptor = hold(self.path)

    def finish(self) -> None:
        """Put the files in place.

        Raises:
            OSError: that can't be done. If something was in `target`, it may be no checkpoint any more.
        """
        for name in (*_files(self.path), *(Path(folder) for folder, *_ in os.walk(self.path))):
            flush(self.path / name)  # 1
        if self.is_there:
            self._move_in()  # 3
        else:
            self.path.rename(self.target)  # 2
            flush(self.target.parent)

    def end(self) -> None:
        """Remove what was not put in place."""
        remove(self.path)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _move_in(self) -> None:
        for name in sorted(os.listdir(self.target), key=_order, reverse=True):
            if _order(name):
                (self.target / name).unlink()
                flush(self.target)
        for file in sorted(_files(self.path), key=lambda one: _order(one.name)):
            (self.target / file).parent.mkdir(parents=True, exist_ok=True)
            if _order(file.name):
                flush(self.target)  # what came before is on the disk
            os.replace(self.path / file, self.target / file)
        flush(self.target)


def _order(name: str) -> int:
    """0, 1 and 2 for a file that loads nothing, for weights, and for what a loader reads first."""
    return 2 if name == ENTRY else 1 if WEIGHTS.fullmatch(name) else 0


def _files(folder: Path) -> Iterator[Path]:
    """Files in `folder` and in the folders in it, by their path from there."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name).relative_to(folder) for name in names)


def _remove_abandoned(folder: Path) -> None:
    try:
        descriptor = hold(folder)
    except (Busy, OSError):
        return
    if descriptor is not None:
        remove(folder)
        os.close(descriptor)
