# SPDX-License-Identifier: Apache-2.0
"""The real vLLM: these tests run where it is installed, in an environment that `make vllm` builds."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

collect_ignore = ["test_served.py", "test_refused.py"] if find_spec("vllm") is None else []
RESULTS = Path(__file__).parents[3] / ".compat" / "served"
TOKENS = 12
found: list[dict[str, Any]] = []


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all of vLLM's processes get: a small cache of keys and values, a cache of compiled code of this run."""
    folder = tmp_path_factory.mktemp("vllm")
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_CACHE_ROOT=str(folder / "cache"),
        VLLM_CPU_OMP_THREADS_BIND="0-1" if (os.cpu_count() or 1) > 1 else "0",
        OMP_NUM_THREADS="1",
        VLLM_ENGINE_READY_TIMEOUT_S="1800",  # a machine with other work compiles slowly
        VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS="1800",
    )
    return folder


@pytest.fixture(scope="session")
def checkpoint(environment: Path) -> Callable[..., Path]:
    """A folder with the checkpoint of a family, made once for each way to ask for rewiring."""
    from tests.vllm.real.asking import asking

    return lambda family, by="options", **options: asking(environment, family, by, **options)


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Add a row to the table of what was served."""

    def add(case: str, mode: str, ranks: int, comparison: Any) -> None:
        rows = comparison.rewired
        found.append(
            {
                "case": case,
                "mode": mode,
                "ranks": ranks,
                "equal": sum(row.equal for row in rows),
                "tokens": sum(row.tokens for row in rows),
                "apart": max(row.apart for row in rows),
                "original": sum(row.equal for row in comparison.original),
                "original_apart": max(row.apart for row in comparison.original),
            }
        )

    return add


def pytest_sessionfinish() -> None:
    if not found:
        return
    import torch
    import transformers
    import vllm

    versions = {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    RESULTS.mkdir(parents=True, exist_ok=True)
    minor = ".".join(vllm.__version__.split(".")[:2])
    place = RESULTS / f"{minor}.json"
    known = json.loads(place.read_text())["rows"] if place.exists() else []
    rows = {(row["case"], row["mode"], row["ranks"]): row for row in (*known, *found)}
    content = {"versions": versions, "machine": platform.processor() or platform.machine(), "rows": list(rows.values())}
    place.write_text(json.dumps(content, indent=1) + "\n")
