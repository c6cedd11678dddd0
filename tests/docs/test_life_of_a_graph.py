# SPDX-License-Identifier: Apache-2.0
"""docs/life_of_a_graph.md lists the functions that a graph goes through, in order, each entered once."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from farskip_compile.models import ParallelConfig, build
from farskip_compile.testing import fake_ranks
from tests.inductor.test_generated_order import get_code_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "life_of_a_graph.md").read_text()
STATIONS = [(path, function) for path, function in re.findall(r"^\d+\. `([\w/.]+)`, `([\w.]+)`:", PAGE, re.MULTILINE)]


def module_of(path: str) -> Any:
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return importlib.import_module(name if name.startswith("farskip_compile") else f"farskip_compile.{name}")


def noting(station: tuple[str, str], function: Callable[..., Any], found: list[tuple[str, str]]) -> Callable[..., Any]:
    @functools.wraps(function)
    def note(*args: Any, **kwargs: Any) -> Any:
        found.append(station)
        return function(*args, **kwargs)

    return note


def patch_station(stack: ExitStack, station: tuple[str, str], found: list[tuple[str, str]]) -> None:
    """Note each call of a station, under every name that the package has for it."""
    path, name = station
    module = module_of(path)
    owner, _, method = name.rpartition(".")
    if owner:
        holder = getattr(module, owner)
        stack.enter_context(mock.patch.object(holder, method, noting(station, getattr(holder, method), found)))
        return
    function = getattr(module, name)
    note = noting(station, function, found)
    holders = [one for key, one in list(sys.modules.items()) if key.split(".")[0] == "farskip_compile"]
    for holder in holders:
        if vars(holder).get(name) is function:
            stack.enter_context(mock.patch.object(holder, name, note))


def entered() -> list[tuple[str, str]]:
    """Return the stations that one compile enters, in order, as often as it does."""
    found: list[tuple[str, str]] = []
    for path, _ in STATIONS:
        module_of(path)
    with fake_ranks(2) as group, torch.no_grad(), ExitStack() as stack:
        for station in STATIONS:
            patch_station(stack, station, found)
        parallel = ParallelConfig(ep_group=group, ep_mode="padded")
        model = build("qwen3_moe", parallel=parallel, layers=("moe", "moe"), vocab_size=32, hidden_size=32).eval()
        compiled = torch.compile(model, backend=module_of(STATIONS[0][0]).farskip, fullgraph=True)
        get_code_of(compiled, torch.zeros(1, 8, dtype=torch.long), graphs=1)
    return found


def test_a_graph_goes_through_the_stations_in_order_and_never_back() -> None:
    assert 20 <= len(STATIONS) <= 25
    assert entered() == STATIONS


def test_no_file_is_entered_again_once_it_is_left() -> None:
    files = [path for path, _ in groupby(path for path, _ in STATIONS)]
    assert len(files) == len(set(files))


def test_the_page_is_short() -> None:
    assert len(PAGE.split()) < 1200
