# SPDX-License-Identifier: Apache-2.0
"""A rank's question to the process that started it."""

from __future__ import annotations

from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds to wait for an answer."""
SOCKET = "desk"


def ask(folder: str, question: Any) -> Any:
    """The answer to a question, which is not None; `RuntimeError` if there is none in time, or an error instead."""
    with Client(str(Path(folder) / SOCKET), "AF_UNIX") as end:
        end.send(question)
        if not end.poll(PATIENCE):
            raise RuntimeError(f"the process that started this rank did not answer within {PATIENCE:.0f} s")
        answer, error = end.recv()
    if error is not None:
        raise RuntimeError(f"the process that started this rank failed to answer: {error}")
    return answer
