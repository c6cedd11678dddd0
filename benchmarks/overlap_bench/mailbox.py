"""Questions of a running rank to the process that started it: to change the network, and to hand over results.

Contract: one rank asks, one question after another; `Desk` answers in order. They meet at a Unix socket in a folder,
because network namespaces share the file system and nothing else. What the desk can't answer is an error on both ends.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from multiprocessing.connection import Client, Listener
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE = 60.0
"""Seconds to wait for an answer."""
SOCKET = "desk"


class Desk:
    """Answers questions that arrive in `folder`, in a thread, inside a `with` block.

    Args:
        folder: an empty one.
        handler: question -> answer, both plain data. What it raises is raised at the end of the block, in place of the
            errors of the ranks that miss an answer.
    """

    def __init__(self, folder: Path, handler: Callable[[Any], Any]) -> None:
        self._path = folder / SOCKET
        self._handler = handler
        self._problem: BaseException | None = None
        self._listener = Listener(str(self._path), "AF_UNIX")
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError), Client(str(self._path), "AF_UNIX") as end:
            end.send_bytes(b"")
        self._thread.join()
        self._listener.close()
        if self._problem is not None and (kind is None or issubclass(kind, Exception)):
            raise self._problem

    def _serve(self) -> None:
        """One connection per question; an empty one ends it."""
        while True:
            with contextlib.suppress(EOFError, OSError), self._listener.accept() as rank:
                question = rank.recv_bytes()
                if not question:
                    return
                rank.send_bytes(json.dumps(self._answer(json.loads(question))).encode())

    def _answer(self, question: Any) -> dict[str, Any]:
        try:
            return {"answer": self._handler(question)}
        except Exception as error:
            self._problem = error
            return {"error": f"{type(error).__name__}: {error}"}


class Mailbox:
    """The asking end."""

    def __init__(self, folder: str) -> None:
        self._path = str(Path(folder) / SOCKET)

    def ask(self, question: Any) -> Any:
        """The answer to a question, both plain data.

        Raises:
            RuntimeError: there was no answer in time, or an error instead.
        """
        with Client(self._path, "AF_UNIX") as desk:
            desk.send_bytes(json.dumps(question).encode())
            if not desk.poll(PATIENCE):
                raise RuntimeError(f"the process that started this rank did not answer within {PATIENCE:.0f} s")
            found = json.loads(desk.recv_bytes())
        if "error" in found:
            raise RuntimeError(f"the process that started this rank failed to answer: {found['error']}")
        return found["answer"]
