"""Questions of a running rank to the process that started it: to change the network, and to hand over results.

Contract: one rank asks, one question after another; `desk` answers in order. Questions and answers are plain data. They
meet at a Unix socket in a folder, because network namespaces share the file system and nothing else. What the desk
can't answer is an error on both ends.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds to wait for an answer."""
SOCKET = "desk"


@contextlib.contextmanager
def desk(folder: Path, handler: Callable[[Any], Any]) -> Iterator[None]:
    """Answer questions that arrive in `folder`, an empty one, in a thread.

    What the handler raises is raised at the end of the block, in place of the errors of the ranks that miss an answer.
    """
    path = str(folder / SOCKET)
    problems: list[Exception] = []

    def answer(question: Any) -> tuple[Any, str | None]:
        try:
            return handler(question), None
        except Exception as error:
            problems.append(error)
            return None, f"{type(error).__name__}: {error}"

    def serve() -> None:
        while True:
            with contextlib.suppress(EOFError, OSError), listener.accept() as rank:
                if (question := rank.recv()) is None:
                    return
                rank.send(answer(question))

    with Listener(path, "AF_UNIX") as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        except Exception:
            if not problems:
                raise
        finally:
            with contextlib.suppress(OSError), Client(path, "AF_UNIX") as end:
                end.send(None)
            thread.join()
    if problems:
        raise problems[-1]


def ask(folder: str, question: Any) -> Any:
    """The answer to a question, which is not None.

    Raises:
        RuntimeError: there was no answer in time, or an error instead.
    """
    with Client(str(Path(folder) / SOCKET), "AF_UNIX") as end:
        end.send(question)
        if not end.poll(PATIENCE):
            raise RuntimeError(f"the process that started this rank did not answer within {PATIENCE:.0f} s")
        answer, error = end.recv()
    if error is not None:
        raise RuntimeError(f"the process that started this rank failed to answer: {error}")
    return answer
