# SPDX-License-Identifier: Apache-2.0
"""The profile of a graph is that of its device, whether this machine has one or not."""

from __future__ import annotations

import logging
from unittest import mock

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from farskip_compile.costs.device import profile_of


def graph_on(*devices: str) -> fx.Graph:
    mode = FakeTensorMode()
    graph = fx.Graph()
    for number, device in enumerate(devices):
        node = graph.placeholder(f"x{number}")
        node.meta["val"] = FakeTensor(mode, torch.empty(2, device="meta"), torch.device(device))
    return graph


def test_a_plan_needs_no_device(caplog: pytest.LogCaptureFixture) -> None:
    with mock.patch.object(torch.cuda, "is_available", return_value=False), caplog.at_level(logging.WARNING):
        assert profile_of(graph_on("cpu", "meta", "cuda:0")).name == "h100"
    assert "no hardware profile for cuda device ''" in caplog.text


def test_a_device_that_is_there_is_asked_for_its_name() -> None:
    asked = []

    def name_of(device: torch.device) -> str:
        asked.append(device)
        return "AMD Instinct MI300X"

    with mock.patch.multiple(torch.cuda, is_available=lambda: True, get_device_name=name_of):
        assert profile_of(graph_on("cpu", "cuda:1")).name == "mi300x"
        assert asked == [torch.device("cuda:1")]
        assert profile_of(graph_on("cpu", "meta")).name == profile_of(fx.Graph()).name == "cpu-gloo"
    assert len(asked) == 1
