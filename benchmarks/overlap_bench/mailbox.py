"""Questions of a running rank to the process that started it: to change the network, and to hand over what is finished.

Contract: one rank asks, one question after another; `Desk` answers each in the order in which they come. They meet in a
folder, because network namespaces share the files and nothing else. What the desk can't answer is an error there.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PAUSE = 0.005
PATIENCE = 60.0
"""Seconds to wait for an answer."""

Handler = Callable[[Any], Any]


class Desk:
    """Answers what comes into `folder`, in a thread, inside of a `with` block.

    Args:
        folder: an empty one.
        handler: question -> answer, both plain data. What it raises is raised behind the block, instead of what the
            ranks fail with for want of an answer.
    """

    def __init__(self, folder: Path, handler: Handler) -> None:
        self._folder = folder
        self._handler = handler
        self._closed = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join()
        if self._problem is not None and (kind is None or issubclass(kind, Exception)):
            raise self._problem

    def _serve(self) -> None:
        number = 0
        while not self._closed.wait(PAUSE):
            question = self._folder / f"question-{number}.json"
            if not question.exists():
                continue
            try:
                answer: Any = {"answer": self._handler(json.loads(question.read_text()))}
            except Exception as error:
                self._problem = error
                answer = {"error": f"{type(error).__name__}: {error}"}
            _write(self._folder / f"answer-{number}.json", answer)
            question.unlink()
            number += 1


class Mailbox:
    """The asking end."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._number = 0

    def ask(self, question: Any) -> Any:
        """The answer to a question, both plain data.

        Raises:
            RuntimeError: there was no answer in time, or an error instead.
        """
        _write(self._folder / f"question-{self._number}.json", question)
        answer = self._folder / f"answer-{self._number}.json"
        deadline = time.monotonic() + PATIENCE
        while not answer.exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the process that started this rank did not answer within {PATIENCE:.0f} s")
            time.sleep(PAUSE)
        found = json.loads(answer.read_text())
        answer.unlink()
        self._number += 1
        if "error" in found:
            raise RuntimeError(f"the process that started this rank could not do as asked: {found['error']}")
        return found["answer"]


def _write(path: Path, data: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data))
    part.replace(path)  # never seen half written
