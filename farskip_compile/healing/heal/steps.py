# SPDX-License-Identifier: Apache-2.0
"""The steps of a healing on disk: what each found, and what it was found for.

In:    a folder; for each step its name, what it depends on (plain data), and a function that does it.
Out:   `FOLDER/steps/NAME.json`, sealed, with all that the function returned; the same without calling it, if a record
       is there and what it depends on is equal.
Never: takes a record for one of other arguments, or a damaged one. Training is never done again because an argument has
       changed: that is refused (`begin`), since it may have taken days. All other steps are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from farskip_compile.base.json_files import read_sealed, write_sealed
from farskip_compile.errors import ConfigError, DistillationError
from farskip_compile.text_utils import shortened

STEPS = "steps"
SCHEMA = 1
ANEW = "the same arguments as before continue; others need another --out"


class HealSteps:
    """See the module. Nothing is written before `release`: what was found until then is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[str] = []
        """Steps that were done now, and not read."""
        self._held: dict[str, dict[str, Any]] | None = {}

    def known(self, name: str, needs: Mapping[str, Any]) -> dict[str, Any] | None:
        """What the step found, if it is done and `needs` are what they were."""
        found = self._read(name)
        if found is None or found["result"] is None or self._other(found, needs):
            return None
        result: dict[str, Any] = found["result"]
        return result

    def run(self, name: str, needs: Mapping[str, Any], work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What the step finds; `work` is called if it isn't known."""
        known = self.known(name, needs)
        if known is not None:
            return known
        began = time.perf_counter()
        result = {**work(), "seconds": time.perf_counter() - began}
        self._write(name, needs, result)
        self.done.append(name)
        plain: dict[str, Any] = json.loads(json.dumps(result))  # as it will be read
        return plain

    def check(self, name: str, needs: Mapping[str, Any]) -> bool:
        """Whether the step has begun, or is done, with `needs`, which may be some of what it depends on.

        Raises:
            ConfigError: it has begun for something else.
        """
        found = self._read(name)
        if found is None:
            return False
        if other := self._other(found, needs):
            raise ConfigError(
                f"{self.folder} holds a healing of another {_apart(other, found['needs'].get(other), needs[other])}",
                way_out=ANEW,
            )
        return True

    def begin(self, name: str, needs: Mapping[str, Any]) -> None:
        """Say that a step begins that is not to be done for something else afterwards.

        Raises:
            ConfigError: it has begun for something else.
        """
        if not self.check(name, needs):
            self._write(name, needs, None)

    def finish(self, name: str, needs: Mapping[str, Any], work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """`begin`, and then as `run`."""
        self.begin(name, needs)
        return self.run(name, needs, work)

    def release(self) -> None:
        """Write what was held back, and from now on at once."""
        held, self._held = self._held or {}, None
        for name, content in held.items():
            self._put(name, content)

    def _other(self, found: Mapping[str, Any], needs: Mapping[str, Any]) -> str:
        plain: dict[str, Any] = json.loads(json.dumps(needs))
        return next((name for name, value in plain.items() if found["needs"].get(name) != value), "")

    def _file(self, name: str) -> Path:
        return self.folder / STEPS / f"{name}.json"

    def _read(self, name: str) -> dict[str, Any] | None:
        file = self._file(name)
        if not file.exists():
            return None
        way_out = f"remove {file}: the step is done again, and training continues from its last state"
        found = read_sealed(file, "record of a step", way_out=way_out, error=DistillationError)
        if found.get("schema") != SCHEMA:
            raise DistillationError(f"{file} was written by another version of this package", way_out=way_out)
        return found

    def _write(self, name: str, needs: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
        content = {"schema": SCHEMA, "needs": dict(needs), "result": dict(result) if result is not None else None}
        if self._held is not None:
            self._held[name] = content
        else:
            self._put(name, content)

    def _put(self, name: str, content: Mapping[str, Any]) -> None:
        file = self._file(name)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"can't make the folder {file.parent}: {error.strerror}",
                way_out="--out: a folder with the right to write",
            ) from error
        write_sealed(file, content)


def _apart(name: str, was: Any, now: Any) -> str:
    """In which two values differ, in words."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        plain: dict[str, Any] = json.loads(json.dumps(now))
        key = next(key for key in (*was, *plain) if was.get(key) != plain.get(key))
        return f"{name}: {key} was {json.dumps(was.get(key))}, and is now {json.dumps(plain.get(key))}"
    return f"{name}: it was {shortened(json.dumps(was), 40)}, and is now {shortened(json.dumps(now), 40)}"
