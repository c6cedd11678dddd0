# SPDX-License-Identifier: Apache-2.0
"""The overlap benchmark from end to end on one rank without compiling, and Inductor's own overlap in compiled code."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist
from captured_code import captured_code
from common import decode
from overlap_bench import ranks, settings
from overlap_bench.cells import (
    EAGER,
    EXTRA,
    EXTRA_RATIOS,
    FULL,
    FULL_2,
    FULL_CUT,
    FULL_TOKENS,
    LAG2,
    LAG2_HAND,
    MICRO,
    ORDER,
    OVERLAP,
    PASSES,
    PLAIN,
    Cell,
)
from overlap_bench.inductor import device_figures, facts, options_for
from overlap_bench.launch import desk
from overlap_bench.results import Result, summarise
from overlap_bench.steps import left_out
from overlap_bench.terminal import cell_text

from farskip_compile.costs import default_profile


@pytest.fixture
def nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    with (
        torch._inductor.config.patch(fx_graph_cache=True),
        torch._functorch.config.patch(enable_autograd_cache=True),
        torch._dynamo.config.patch(recompile_limit=8),
    ):
        yield
    torch.set_num_threads(threads)
    if dist.is_initialized():  # after a failure
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "name",
    [
        "deepseek_v3/training/balanced/2/0.5",
        "qwen3_moe/decode/skewed/2/1",
        "llama4/prefill/balanced/2/2",
        "llama4/training/skewed/4/1",
    ],
)
def test_a_cell_from_end_to_end(name, nothing_is_compiled, tmp_path):
    """All that is between the ranks and the table. Uncompiled, `full` is the plain model, and differs."""
    cell = Cell.parse(name)
    wanted = settings.settings_of(cell.group, settings.SMOKE)
    handed, rates = [], []

    def answer(question):
        if "cell" in question:
            return handed.append(question["cell"])
        rates.append(question["rate"])
        return {"rate": question["rate"], "text": "made up"}

    with desk(tmp_path, answer):
        profile = ranks.measure_group(0, wanted, [cell.ratio, 0.25], {}, None, str(tmp_path), None)
    assert profile["name"] == default_profile("cpu").name
    assert [one["ratio"] for one in handed] == [cell.ratio, 0.25]
    assert rates[0] is None  # compute is measured without a limit
    assert None not in rates[1:]
    result = summarise(cell, handed[0], about="", cores="", when="", machine="", is_network=True)
    assert decode(Result, json.loads(json.dumps(result.to_json()))) == result
    names = [name for name in ORDER if name not in left_out(wanted, cell.ratio)]
    if cell.group.phase == "decode" and MICRO in names:
        names.remove(MICRO)
        assert "one of the whole batch" in result.missing[MICRO]
    assert set(result.exposed) == set(names)
    apart = {(check["one"], check["other"]) for check in result.differs}
    rewired = {(name, "hand-written") for name in (FULL, FULL_2, FULL_CUT, FULL_TOKENS) if name in names}
    assert apart == rewired | ({(LAG2, LAG2_HAND)} if LAG2 in names else set())
    assert (LAG2 in names) == (cell.ratio in EXTRA_RATIOS)
    assert not {*handed[1]["code"], *handed[1]["estimates"]} & {*EXTRA}  # the second ratio has none of the first one's
    assert result.largest_exchange > 0
    assert not any(result.least_makespans.values())  # nothing is scheduled
    assert sum(result.shares.values()) == pytest.approx(1.0)
    assert result.rate in rates
    for variant in names:
        assert len(result.raw[0][variant]) == 3
        assert result.peak_bytes[variant] > 0
        assert result.exposed[variant]["communication"] > 0
        if cell.group.phase == "training":
            parts = [result.exposed[variant][part]["communication"] for part in ("forward", "backward")]
            assert min(parts) > 0
            assert sum(parts) == pytest.approx(result.exposed[variant]["communication"])
    assert EAGER in cell_text(result, 80)


def test_inductors_own_overlap_acts_in_the_code_that_it_generates():
    """Both ways to switch it on move a product between launch and wait; the old flag alone does nothing."""
    import torch.distributed._functional_collectives as fc
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:

        def step(x, w):
            sent = fc.all_to_all_single(x @ w, None, None, dist.group.WORLD)
            return sent @ (w @ w @ w)

        def code_of(options):
            torch._dynamo.reset()
            with torch._inductor.config.patch(fx_graph_cache=False), captured_code() as codes, torch.no_grad():
                torch.compile(step, fullgraph=True, options=options)(torch.ones(256, 256), torch.ones(256, 256))
            return facts(codes)

        profile = default_profile("cpu")
        found = {"flag": code_of({"reorder_for_compute_comm_overlap": True}), PLAIN: code_of({})}
        with device_figures(profile):
            found |= {name: code_of(options_for(name, profile)) for name in (OVERLAP, PASSES)}
    finally:
        dist.destroy_process_group()
    assert {name: facts.heavy > 0 for name, facts in found.items()} == {
        "flag": False,
        PLAIN: False,
        OVERLAP: True,
        PASSES: True,
    }
    assert all(facts.collectives == 1 for facts in found.values())
    one, same, other = (options_for(PASSES, profile) for profile in (profile, profile, default_profile("cuda", "H100")))
    assert one == same != other  # so that Dynamo compiles anew for another profile
