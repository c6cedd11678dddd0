"""How much of a step's communication is hidden: plain Inductor, our backend, and FarSkip written by hand.

Usage: python benchmarks/overlap.py [--quick] [--ratio 0.5] [--json FILE] [--traces FOLDER]

A DeepSeek-V3 style model (latent attention, one dense layer, then experts chosen by groups and one shared expert) with
its experts spread over hosts that are joined by a network with a limited rate (`network.py`); padded all-to-alls;
float32 on one core of each host. Two phases, each with a rate of its own: prefill, a forward pass under no_grad; and a
training step, forward and backward. `overlap_ranks.py` says what the variants are.

The rate is chosen for each phase so that communication takes --ratio times as long as compute, both measured alone:
* compute: the same step compiled by plain Inductor, its collectives copying to themselves instead of sending. So it is
  the same kernels in the same order, without network, waiting or the other ranks.
* communication: the step's collectives one after another at this rate, nothing else.
* bound: the larger of the two. No schedule can beat it, and none of a real model reaches it: something must be
  computed before the first collective and after the last.

All variants, compute and communication take turns in one process on each host, so that a slow moment slows all alike.
A step takes as long as on its slowest rank; given are the median over repetitions and the interquartile range. Exposed
communication (`farskip_compile.profiling`: a collective is in flight and nothing is computed) is that of one further
step under the profiler, as a mean over ranks. Our backend is given the shipped CPU profile with this link's figures;
`estimated` is what its scheduler expected, of Inductor's order and of its own.

Results are compared on every rank in the same run: `none` with plain, `full` with the hand-written form, logits or loss
and all gradients, to 1e-4 of their norms.

The last lines are the verdict. Exit status: 0 if the results agree and, at a ratio of 0.5, `full` is at least 1.2 times
as fast as plain Inductor in prefill and 1.15 times in training; 1 if not, or if a rank failed; 2 wrong usage; 3 if
there are no namespaces here and all this was measured on the loopback interface.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compile_cost import machine, versions
from harness import HarnessError, Network, QuantityError, format_rate
from harness.quantities import FASTEST, SLOWEST
from overlap_results import WANTED, WANTED_AT, Phase, Timing, describe, summarise, verdict

OK, WRONG, USAGE, NO_NETWORK = 0, 1, 2, 3
TIMEOUT = 1500.0

MODEL: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 512,
    "heads": 16,
    "query_rank": 128,
    "kv_rank": 64,
    "nope_head_dim": 64,
    "rope_head_dim": 32,
    "value_head_dim": 64,
    "intermediate_size": 1344,
    "moe_intermediate_size": 256,
    "experts": 8,
}
"""Attention and dense layers in DeepSeek-V3's proportions to the width. A token has two experts instead of eight, so
each is larger."""
SETTINGS: dict[str, Any] = {"model": "deepseek_v3", "tokens": 1024, "capacity_factor": 1.25}
QUICK_LAYERS, FULL_LAYERS = ["dense", "moe", "moe", "moe"], ["dense"] + 6 * ["moe"]


# Measuring


def run_phase(network: Network, phase: str, settings: Mapping[str, Any], args: argparse.Namespace) -> Phase:
    """Choose the rate, then measure all variants."""
    import overlap_ranks as ranks

    def tell(text: str) -> None:
        print(f"{phase}: {text}", file=sys.stderr, flush=True)

    tell("compute alone")
    network.set_rate(None)
    found = _values(network.run(ranks.calibrate, lambda rank: (rank, settings, phase, 5), timeout=TIMEOUT))
    compute = Timing.of([value["seconds"] for value in found]).median
    exchanges = found[0]["exchanges"]
    sent = sum(numel * _bytes(dtype) for numel, dtype in exchanges) * (network.hosts - 1) / network.hosts

    wanted = args.ratio * compute
    rate, communication = 8 * sent / wanted, wanted
    for _ in range(2):  # gloo does not fill the link: correct the first guess by what it reached
        rate = min(max(rate * communication / wanted, SLOWEST), FASTEST)
        network.set_rate(_round(rate))
        times = _values(network.run(ranks.probe, lambda rank: (rank, exchanges, 5), timeout=TIMEOUT))
        communication = Timing.of(times).median
        tell(f"compute {1e3 * compute:.0f} ms; communication {1e3 * communication:.0f} ms at {format_rate(rate)}")
        if abs(communication / wanted - 1) < 0.05 or not network.is_network:
            break

    traces = None if args.traces is None else str(args.traces.resolve())
    options: dict[str, Any] = {"profile": link_profile(network, sent, communication, len(exchanges))}
    if args.memory_increase is not None:
        options["memory_increase"] = args.memory_increase
    results = network.run(
        ranks.measure,
        lambda rank: (rank, settings, phase, options, exchanges, args.repetitions, traces),
        env={"KINETO_LOG_LEVEL": "99"},  # the profiler's own log
        timeout=TIMEOUT,
    )
    return summarise(phase, network.describe(), network.link.rate if network.is_network else None, _values(results))


def link_profile(network: Network, sent: float, seconds: float, exchanges: int) -> dict[str, Any]:
    """The shipped CPU profile with the figures of this link, as JSON; what a user has who has measured the network."""
    from farskip_compile.costs import default_profile

    profile = default_profile("cpu")
    bandwidth = (network.link.rate or 8 * sent / seconds) / 8
    link = dataclasses.replace(profile.inter_node, bandwidth=bandwidth)
    latency = exchanges * (link.latency.all_to_all + (network.hosts - 2) * link.step_latency)
    reached = min(1.0, sent / max(seconds - latency, 1e-9) / bandwidth)
    link = dataclasses.replace(link, efficiency=dataclasses.replace(link.efficiency, all_to_all=reached))
    sources = {**profile.sources, "inter_node": f"measured on {network.describe()}"}
    return dataclasses.replace(profile, ranks_per_node=1, inter_node=link, sources=sources).to_json()


def _values(results: Sequence[Any]) -> list[Any]:
    return [result.value for result in results]


def _bytes(dtype: str) -> int:
    return {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8, "int64": 8}[dtype]


def _round(rate: float) -> int:
    """To whole Mbit/s."""
    return round(rate / 1e6) * 10**6


# The command


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 layers instead of 7, and 7 repetitions instead of 15")
    parser.add_argument("--ratio", type=float, default=WANTED_AT, help="communication / compute (default: 0.5)")
    parser.add_argument("--hosts", type=int, default=2, help="2 to 4 (default: 2)")
    parser.add_argument("--phases", nargs="+", choices=tuple(WANTED), default=list(WANTED), help="default: both")
    parser.add_argument("--repetitions", type=int, help="of each variant")
    parser.add_argument("--memory-increase", type=float, help="option of our backend (default: its own, 0.05)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to FILE")
    parser.add_argument("--traces", type=Path, metavar="FOLDER", help="keep Chrome traces of every variant and rank")
    args = parser.parse_args()
    args.repetitions = args.repetitions or (7 if args.quick else 15)
    if args.ratio <= 0 or args.repetitions < 2:
        parser.error("--ratio must be positive, and --repetitions at least 2")
    return args


def main() -> int:
    args = arguments()
    try:
        return report(args)
    except QuantityError as error:
        print(f"overlap.py: {error}", file=sys.stderr)
        return USAGE
    except HarnessError as error:
        print(f"FAIL: {error}", file=sys.stderr)
        return WRONG


def report(args: argparse.Namespace) -> int:
    """Measure, print, write, and judge."""
    start, described, command = time.perf_counter(), machine(), " ".join(["python", *sys.argv])
    settings = {**SETTINGS, "overrides": {**MODEL, "layers": QUICK_LAYERS if args.quick else FULL_LAYERS}}
    width = shutil.get_terminal_size((80, 24)).columns
    phases = []
    with Network(args.hosts, None) as network:
        problem = network.problem
        pinned = "one core each" if network.cores[0] is not None else "cores shared"
        facts = {
            "model": f"{settings['model']} style, {len(settings['overrides']['layers'])} layers, width "
            f"{MODEL['hidden_size']}, {MODEL['experts']} experts over {args.hosts} hosts, {settings['tokens']} tokens "
            "each, float32",
            "machine": described,
            "versions": versions(),
            "command": command,
            "method": f"median and interquartile range of {args.repetitions} interleaved repetitions, slowest rank; "
            f"exposed: one profiled step, mean over ranks; {pinned}",
        }
        for name, text in facts.items():
            print(textwrap.fill(text, min(width, 120), initial_indent=f"{name + ':':10}", subsequent_indent=" " * 10))
        for phase in args.phases:
            phases.append(run_phase(network, phase, settings, args))
            print(f"\n{describe(phases[-1], width)}", flush=True)
    passed, last = verdict(phases, args.ratio, problem)
    elapsed = time.perf_counter() - start
    if args.json is not None:
        record = {
            **facts,
            "settings": settings,
            "hosts": args.hosts,
            "is_network": problem is None,
            "wanted_ratio": args.ratio,
            "elapsed": elapsed,
            "phases": [
                {
                    **dataclasses.asdict(phase),
                    "ratio": phase.ratio,
                    "bound": phase.bound,
                    "speed_up": phase.speed_up("full"),
                }
                for phase in phases
            ],
            "passed": passed,
            "verdict": last,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{elapsed:.0f} s in all\n" + "\n".join(last))
    return NO_NETWORK if problem is not None else OK if passed else WRONG


if __name__ == "__main__":
    sys.exit(main())
