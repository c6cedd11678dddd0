# SPDX-License-Identifier: Apache-2.0
"""Settings of the whole suite: seeded, no deadline (a compile takes what it takes), fresh compiler state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.multiprocessing
from hypothesis import HealthCheck, settings

from tests.economy import collect_rarely, examples, link_quickly, probe_once, trace_nothing
from tests.tiers import DEEP, WHOLE, is_deep, place

# The package is imported by the fixtures: where it can not be, `test_private_apis.py` says why, and must be collected.

settings.register_profile(
    "suite",
    max_examples=examples(100),
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    trace_nothing()
    link_quickly()  # workers inherit it, too
    if config.getoption("numprocesses", None):  # before the workers start: they inherit the environment
        probe_once()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes name a test by how many they are: gzip writes the time into them, and workers must agree on names."""
    return f"{argname}-{len(val)}B" if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test` and `make test-all` leave out, and start with it."""
    places = {item.nodeid: place(item.nodeid) for item in items}
    for item in items:
        if places[item.nodeid] is not None:
            item.add_marker(pytest.mark.whole)
        if is_deep(item.nodeid):
            item.add_marker(pytest.mark.deep)
    items.sort(key=lambda item: len(WHOLE) + len(DEEP) if (at := places[item.nodeid]) is None else at)


def pytest_collection_finish(session: pytest.Session) -> None:
    """A `UsageError` if tests that share what takes long are not kept together: nothing else would show it."""
    if getattr(session.config.option, "loadgroup", False):
        apart = [
            item.nodeid for item in session.items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid
        ]
        if apart:
            raise pytest.UsageError(f"pytest {pytest.__version__} and pytest-xdist do not group {apart[0]} and others")


@pytest.fixture(scope="session", autouse=True)
def economy():
    """Whichever test is the first to fork: its server is the one of all later ones, and imports what it does once."""
    from tests.distributed.ranks import PRELOADED

    collect_rarely()  # not earlier: all tests have been imported now
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)


@pytest.fixture(autouse=True)
def fresh_compiler():
    import farskip_compile

    torch.set_num_threads(1)
    farskip_compile.reports().clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def two_ranks() -> Iterator[Any]:
    """Rank 0 of two, on a process group that sends nothing: compiling needs no more."""
    from farskip_compile.compiler.ranks.fake import fake_ranks

    with fake_ranks(2) as group:
        yield group
