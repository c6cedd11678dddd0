"""The overlap benchmark: its group that sends nothing, its choice of the rate, its arithmetic and its verdict.

What it measures is shown by running it; no step is timed here.
"""

from __future__ import annotations

import argparse
import math

import overlap
import overlap_ranks
import pytest
import torch
import torch.distributed as dist
from harness import RankResult
from harness.commands import Link
from harness.quantities import FASTEST, SLOWEST
from local_exchange import local_exchange
from overlap_results import PLAIN, Phase, Timing, describe, summarise, verdict

from farskip_compile.costs import HardwareProfile, collective_seconds

VARIANTS = ("plain", "none", "full", "hand-written")


def estimate(before, after, peak, peak_after):
    """What the scheduler says of one graph."""
    return {
        "before": {"exposed_seconds": before, "communication_seconds": 0.4, "peak_bytes": peak},
        "after": {"exposed_seconds": after, "communication_seconds": 0.4, "peak_bytes": peak_after},
    }


def values(full=0.6, error=0.0, ranks=2):
    """What ranks return; the last is 10 ms slower than the others."""
    seconds = {"plain": 0.9, "none": 0.8, "full": full, "hand-written": 0.91, "compute": 0.55, "communication": 0.275}
    return [
        {
            "seconds": {name: [s, s + 0.002, s - 0.002, s + 0.01 * (rank == ranks - 1)] for name, s in seconds.items()},
            "compile_seconds": dict.fromkeys((*VARIANTS, "compute"), 10.0 + rank),
            "checks": [
                {"tensors": 2, "worst": "logits", "error": 0.0},
                {"tensors": 2, "worst": f"w{rank}", "error": error * rank},
            ],
            "busy": [10.0, 9.0, 19.0],
            "estimates": {"none": [], "full": [estimate(0.3, 0.1, 100, 104), estimate(0.6, 0.2, 100, 90)]},
            "exposed": {name: {"communication": 0.3, "exposed": 0.1 * (1 + rank), "compute": 0.5} for name in VARIANTS},
        }
        for rank in range(ranks)
    ]


def phase(name="prefill", **wanted) -> Phase:
    return summarise(name, "2 hosts", 10**9, values(**wanted))


def test_a_step_takes_as_long_as_on_its_slowest_rank():
    timing = Timing.of([[1.0, 5.0, 3.0], [2.0, 1.0, 4.0]])  # 2, 5, 4
    assert timing.median == 4.0
    assert timing.spread == pytest.approx(1.5)


def test_ranks_are_put_together():
    found = phase(error=2e-5)
    assert found.timings[PLAIN].median == pytest.approx(0.901)
    assert found.exposed["full"] == pytest.approx({"communication": 0.3, "exposed": 0.15, "compute": 0.5})
    assert found.compile_seconds == dict.fromkeys(VARIANTS, 11.0)
    assert (list(found.errors), list(found.worst)) == ([0.0, 2e-5], ["logits", "w1"])
    assert found.others == pytest.approx(0.1)  # a second of ten, on top of the two ranks' nine each
    assert found.ratio == pytest.approx(0.276 / 0.551)
    assert found.bound == found.timings["compute"].median
    assert found.speed_up("full") == pytest.approx(0.901 / 0.601)


@pytest.mark.parametrize(
    ("name", "full", "error", "ratio", "passed", "word"),
    [
        ("prefill", 0.74, 0.0, 0.5, True, "met"),
        ("prefill", 0.76, 0.0, 0.5, False, "missed"),
        ("training", 0.77, 0.0, 0.5, True, "met"),
        ("training", 0.79, 0.0, 0.5, False, "missed"),
        ("prefill", 0.76, 0.0, 0.25, True, "not judged at a ratio of 0.25"),
        ("prefill", 0.5, 2e-4, 0.5, False, "RESULTS DIFFER"),
        ("prefill", 0.5, math.nan, 0.5, False, "RESULTS DIFFER"),
        ("prefill", 0.5, 2e-4, 0.25, False, "RESULTS DIFFER"),
    ],
)
def test_the_verdict(name, full, error, ratio, passed, word):
    found, lines = verdict([phase(name, full=full, error=error)], ratio, None)
    assert found is passed
    assert word in lines[0]
    assert lines[-1] == ("PASS" if passed else "FAIL")


def test_one_bad_phase_is_enough_and_loopback_is_never_a_pass():
    good, bad = phase(full=0.5), phase("training", full=0.9)
    assert verdict([good, bad], 0.5, None)[0] is False
    assert verdict([bad, good], 0.5, None)[0] is False
    passed, lines = verdict([good], 0.5, "no root")
    assert not passed
    assert lines[-1] == "NOT CHECKED: loopback, not a network (no root)"


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits(width):
    text = describe(phase(error=1.0), width)
    assert max(map(len, text.splitlines())) <= width
    assert "full = hand-written: NO, apart by 1.0e+00 of the norm (w1)" in text
    assert "none = plain: yes" in text
    assert "full, estimated: exposed 900 ms -> 300 ms of 800 ms, peak +4.0 %" in text
    assert "none, estimated: nothing was scheduled" in text
    assert ("compiled in" in text) is (width == 120)


def test_a_busy_machine_is_told():
    assert "TRUST" not in describe(phase(), 80)
    busy = [{**value, "busy": [10.0, 9.0, 21.0]} for value in values()]
    assert "kept 0.30 cores busy: TOO MANY TO TRUST" in describe(summarise("prefill", "2 hosts", 10**9, busy), 80)


class HalfDuplex:
    """A network on which communication takes twice as long as the link's rate says, as gloo's all-to-all does."""

    hosts, is_network = 2, True

    def __init__(self, compute):
        self.compute, self.link, self.rates, self.profile = compute, Link(None), [], None

    def set_rate(self, rate):
        self.link = Link(rate)
        self.rates.append(rate)

    def describe(self):
        return "made up"

    def run(self, target, args, timeout, env=None):
        if target is overlap_ranks.calibrate:
            value = {"seconds": [self.compute] * 3, "exchanges": [(10**6, "float32")] * 6}
        elif target is overlap_ranks.probe:
            value = [2 * 8 * 12e6 / self.link.rate] * 3
        else:
            self.profile = HardwareProfile.from_json(args(0)[3]["profile"])
            return [RankResult(rank, v, "", ()) for rank, v in enumerate(values())]
        return [RankResult(rank, value, "", ()) for rank in range(2)]


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_the_rate_gives_the_wanted_ratio(ratio):
    network = HalfDuplex(compute=0.55)
    args = argparse.Namespace(ratio=ratio, repetitions=3, traces=None, memory_increase=None)
    found = overlap.run_phase(network, "prefill", {}, args)
    assert network.rates[0] is None  # compute was measured without a limit
    reached = 2 * 8 * 12e6 / network.rates[-1]
    assert reached / 0.55 == pytest.approx(ratio, rel=0.05)
    assert found.rate == network.rates[-1]
    # and our backend is told how long one exchange takes
    told = collective_seconds("all_to_all", 4 * 10**6, 2, network.profile)
    assert told == pytest.approx(reached / 6, rel=0.01)


@pytest.mark.parametrize(("compute", "limit"), [(100.0, SLOWEST), (1e-3, FASTEST)])
def test_the_rate_stays_what_a_link_can_have(compute, limit):
    network = HalfDuplex(compute)
    overlap.run_phase(
        network, "prefill", {}, argparse.Namespace(ratio=0.5, repetitions=3, traces=None, memory_increase=None)
    )
    assert network.rates[-1] == limit


def test_how_far_results_are_apart():
    wanted = {"a": torch.tensor([3.0, 4.0]), "b": torch.ones(2), "zero": torch.zeros(2)}
    found = overlap_ranks.compare({**wanted, "a": torch.tensor([3.0, 4.5])}, wanted)
    assert found == {"tensors": 3, "worst": "a", "error": pytest.approx(0.1)}
    assert overlap_ranks.compare({**wanted, "b": torch.tensor([1.0, math.nan])}, wanted)["worst"] == "b"
    assert overlap_ranks.compare({**wanted, "zero": torch.ones(2)}, wanted)["worst"] == "zero"
    with pytest.raises(AssertionError, match="only one of two variants has"):
        overlap_ranks.compare({"a": wanted["a"]}, wanted)


def test_variants_take_turns_in_a_changing_order(monkeypatch):
    monkeypatch.setattr(dist, "barrier", lambda: None)
    order = []
    seconds = overlap_ranks._interleaved({name: lambda name=name: order.append(name) for name in "abc"}, 4)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_the_group_that_sends_nothing():
    """Its exchange is a copy, forward and backward, also in compiled code, and each is remembered."""
    from farskip_compile._compat import functional_collectives as fc

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = local_exchange()
        x = torch.arange(8.0, requires_grad=True)

        def step(x):
            return fc.all_to_all_single(x * 2, None, None, group) * 3

        for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
            x.grad = None
            group.sent.clear()
            y = run(x)
            y.sum().backward()
            assert torch.equal(y, 6 * x)
            assert torch.equal(x.grad, torch.full((8,), 6.0))
            assert group.sent == [(8, torch.float32)] * 2
        assert local_exchange().group_name != group.group_name
    finally:
        dist.destroy_process_group()
