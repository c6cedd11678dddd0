# SPDX-License-Identifier: Apache-2.0
"""Calibration on two gloo ranks: one profile on both, links measured apart, and the command under a launcher."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch.distributed as dist

from farskip_compile.costs import load_profile
from farskip_compile.costs.profile import COLLECTIVE_KINDS
from farskip_compile.errors import ConfigError
from farskip_compile.measure.calibrate import calibrate, calibrate_compute, calibrate_link, main
from farskip_compile.measure.calibrate.collectives import FULLER, Collectives
from farskip_compile.measure.calibrate.ranks import MeasuredGroup
from tests.calibrate.test_measuring import CPU, TINY
from tests.distributed.ranks import run_ranks


def everything(rank: int, world_size: int) -> dict[str, Any]:
    main.grids = lambda device, quick: TINY
    main.MemoryBench.compiled = lambda self, seconds: None  # seconds of a C++ compiler
    whole = calibrate(budget_seconds=1.0, device="cpu")
    compute = calibrate_compute(budget_seconds=0.3, device="cpu")
    across = calibrate_link(compute, budget_seconds=0.3, device="cpu", ranks_per_node=1)
    within = calibrate_link(across, budget_seconds=0.3, device="cpu", ranks_per_node=2)
    named = main.measure(
        device="cpu", compute=False, budget_seconds=1e-3, ranks_per_node=1, base=compute, largest={"all_reduce": 2**20}
    )
    sizes: dict[str, list[int]] = {}
    for row in named.rows:
        sizes.setdefault(row.section.split(",")[0], []).append(row.size[0])
    try:
        calibrate(device="cpu", ranks_per_node=0)
        refused = ""
    except ConfigError as error:
        refused = error.reason
    profiles = {"whole": whole, "compute": compute, "across": across, "within": within}
    return {
        "profiles": {name: profile.to_json() for name, profile in profiles.items()},
        "digests": [profile.digest() for profile in profiles.values()],
        "refused": refused,
        "sizes": sizes,
        "said": MeasuredGroup(None, CPU).agreed(f"rank {rank}"),
        "uneven": asdict(Collectives(MeasuredGroup(None, CPU)).measure((2**12, 2**16), 0.02).uneven),
    }


def test_all_ranks_get_one_profile_and_links_are_measured_apart() -> None:
    first, second = run_ranks(everything, 2)
    assert first == second
    seconds = first["uneven"].pop("seconds")  # of an exchange that all ranks took part in
    assert seconds > 0
    assert first["uneven"] == {"most": 2**16, "fewer": pytest.approx(2**16 / FULLER, rel=1e-3), "ranks": 2}
    assert first["said"] == "rank 0"
    assert "2 ranks are not 0 on each node" in first["refused"]
    # what is sent is measured whatever the budget, up to the largest message; of the rest, what a line needs
    assert first["sizes"]["all_reduce"] == [2**8, 2**12, 2**16, 2**20]
    assert all(sizes == [2**8, 2**12] for kind, sizes in first["sizes"].items() if kind != "all_reduce")
    found, base = first["profiles"], load_profile("cpu-gloo").to_json()
    assert len(set(first["digests"])) == 4
    for name, links in (
        ("whole", {"intra_node"}),
        ("compute", set()),
        ("across", {"inter_node"}),
        ("within", {"intra_node", "inter_node"}),
    ):
        changed = {link for link in ("intra_node", "inter_node") if found[name][link] != base[link]}
        assert changed == links, name
    for name in ("across", "within"):  # a link alone leaves compute as it was
        assert found[name]["curves"] == found["compute"]["curves"]
    assert found["within"]["inter_node"] == found["across"]["inter_node"]
    assert (found["across"]["ranks_per_node"], found["whole"]["ranks_per_node"]) == (1, base["ranks_per_node"])
    assert set(found["whole"]["intra_node"]["latency"]) == set(COLLECTIVE_KINDS)


def two_nodes(rank: int, world_size: int) -> dict[str, Any]:
    main.grids = lambda device, quick: replace(TINY, messages=(2**8, 2**12))
    profile = calibrate_link(load_profile("cpu-gloo"), budget_seconds=0.2, device="cpu", ranks_per_node=2)
    dist.barrier()
    return profile.to_json()


def test_ranks_of_several_nodes_measure_both_links() -> None:
    found = run_ranks(two_nodes, 4)
    assert all(profile == found[0] for profile in found)
    base = load_profile("cpu-gloo").to_json()
    assert found[0]["ranks_per_node"] == 2
    assert all(found[0][link] != base[link] for link in ("intra_node", "inter_node"))


def command(rank: int, world_size: int, out: str) -> str:
    """`farskip calibrate` as a rank of a launcher: the group of this process is closed, the command makes its own."""
    from typer.testing import CliRunner

    from farskip_compile.cli import app

    store = f"{out}.store"
    main.grids = lambda device, quick: TINY
    main.MemoryBench.compiled = lambda self, seconds: None
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)})
    dist.barrier()
    dist.destroy_process_group()
    connect = dist.init_process_group
    dist.init_process_group = lambda backend: connect(
        backend, init_method=f"file://{store}", rank=rank, world_size=world_size
    )
    result = CliRunner().invoke(app, ["calibrate", out, "--budget", "0.5", "--device", "cpu", "--json"])
    dist.init_process_group = connect
    connect("gloo", init_method=f"file://{store}2", rank=rank, world_size=world_size)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_writes_and_prints_on_rank_0(tmp_path) -> None:
    out = tmp_path / "mine.json"
    first, second = run_ranks(command, 2, str(out))
    assert second == ""
    document = json.loads(first)
    assert document["ranks"] == 2
    assert load_profile(out).to_json() == document["profile"]
