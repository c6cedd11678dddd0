# SPDX-License-Identifier: Apache-2.0
"""What a layer's graph does not know: the memory of the rest of the model, and how late what comes in is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement

import farskip_compile
from farskip_compile.compiler import inner
from farskip_compile.compiler.inductor_passes.plan import LayerContext
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.records.schedule import Predicted, ScheduleReport, publish_schedule
from farskip_compile.tools.regional.outside_bytes import bytes_outside_layer
from tests.regional.test_regional import IDS, model_of


def model() -> nn.Sequential:
    layers = [nn.Linear(4, 4, bias=False), nn.Linear(4, 8, bias=False)]
    made = nn.Sequential(nn.Embedding(3, 4), *layers)
    made.register_buffer("table", torch.zeros(5, dtype=torch.int64))
    return made


def test_all_but_the_largest_layer() -> None:
    made = model()
    assert bytes_outside_layer(made, [made[1], made[2]]) == 4 * (3 * 4 + 4 * 4) + 8 * 5


@pytest.mark.parametrize(("placement", "share"), [(Shard(0), 6 * 4), (Shard(1), 6 * 4), (Replicate(), 12 * 4)])
def test_of_a_sharded_parameter_an_equal_share(placement: Placement, share: int) -> None:
    with fake_ranks(2):
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
        made = model()
        made[0].weight = nn.Parameter(distribute_tensor(made[0].weight.data, mesh, [placement]))
        assert bytes_outside_layer(made, [made[2]]) == share + 4 * 4 * 4 + 8 * 5


def test_a_share_of_rows_that_are_not_divisible_is_the_same_on_all_ranks() -> None:
    for rank in range(2):
        with fake_ranks(2, rank=rank):
            mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
            made = model()
            made[0].weight = nn.Parameter(distribute_tensor(torch.zeros(3, 5), mesh, [Shard(0)]))
            assert bytes_outside_layer(made, [made[2]]) == 4 * 8 - 2 + 4 * 4 * 4 + 8 * 5


@pytest.mark.parametrize("options", [None, {"connectivity": "none"}])
def test_whoever_compiles_a_layer_gets_it(options: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(config: object, module: object, *, common: object, context: LayerContext) -> None:
        raise RuntimeError(f"{context.bytes_outside} bytes beside")

    monkeypatch.setattr(inner, "make_plan", plan)
    whole = model_of()
    wanted = bytes_outside_layer(whole, list(whole.layers))
    assert 0 < wanted < sum(one.nbytes for one in whole.parameters())
    farskip_compile.regional(whole, "none", compile=False)
    whole.layers[0].compile(backend="farskip", fullgraph=True, options=options)
    with torch.no_grad(), pytest.raises(Exception, match=f"{wanted} bytes beside"):
        whole(IDS)


def test_a_layer_is_told_how_late_is_what_the_one_before_has_left() -> None:
    whole = model_of()
    farskip_compile.regional(whole, "full", inner="eager")
    with torch.no_grad():
        whole(IDS)
    dense, first, second, last = farskip_compile.reports().compiles
    departures = [report.departure for report in (dense, first, second, last)]
    assert all(departure is not None for departure in departures)
    keys = [(departure.came, departure.tail) for departure in departures if departure is not None]
    assert keys[0] == ("", "")
    assert "" not in (keys[1][1], keys[2][1])
    assert [came for came, _ in keys[1:]] == [tail for _, tail in keys[:-1]]
    after = Predicted(1.0, 1.0, 1.0, 0.0, 0, 0, late_seconds=0.25)
    publish_schedule(ScheduleReport("inference", after=after, leaves=keys[1][1]))
    expected = LayerContext(bytes_outside=7, seconds_until_arrival=0.25, departure=keys[2][1])
    assert inner._context(second, lambda: 7) == expected
    assert (
        inner._context(None, lambda: 7) == inner._context(replace(second, departure=None), lambda: 7) == LayerContext()
    )
