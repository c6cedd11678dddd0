# SPDX-License-Identifier: Apache-2.0
"""What AMD published, cell by cell: the setting, and the figures.

Contract: data (arXiv 2511.11505 and its v3 abstract). `open_points` lists settings that the source leaves open. For a
range over several prompts only the ends are published: they are compared with the lowest and the highest of our
predictions, whichever prompts those belong to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from farskip_compile.measure.simulate import Scenario
from farskip_compile.measure.simulate.scenario import Architecture, architecture

PREFILL, DECODE, TRAIN = "prefill", "decode", "train"


@dataclass(frozen=True)
class StepTime:
    """A published step time as written, on the same kind of device.

    It shows how much longer than by the profile compute takes there: a second prediction starts from that. The nearest
    public one, chosen by model, engine and setting alone.
    """

    scenario: Callable[[], Scenario]
    """What was measured."""
    seconds: float
    where: str
    """Engine and setting, in words."""
    source: str


@dataclass(frozen=True)
class Published:
    """One line of AMD's tables."""

    name: str
    where: str
    """Model, engine and hardware, in words."""
    scenarios: tuple[Callable[[], Scenario], ...]
    """One, or one for each prompt of a range."""
    speedup: tuple[float, ...]
    """One, or the lowest and the highest."""
    source: str
    overlap: dict[str, float] = field(default_factory=dict)
    """Fraction of the communication that is hidden: `total`, `forward`, `backward`."""
    open_points: str = ""
    step_time: StepTime | None = None


def six_layers() -> Architecture:
    """DeepSeek-V3 cut to 6 layers. 71 billion parameters are 6 layers with experts and none without."""
    whole = architecture("deepseek-v3")
    fields = {**whole.fields, "num_hidden_layers": 6, "first_k_dense_replace": 0}
    return replace(whole, name="deepseek-v3-6-layers", fields=fields)


def _train(model: str | Callable[[], Architecture], ep: int, each: int) -> Callable[[], Scenario]:
    return lambda: Scenario(
        model=model if isinstance(model, str) else model(),
        device="mi325x",
        ep=ep,
        phase=TRAIN,
        prompt=4096,
        batch=each * ep,
    )


def _serve(model: str, prompt: int, batch: int, *, ranks: int = 8, phase: str = PREFILL) -> Callable[[], Scenario]:
    return lambda: Scenario(
        model=model, device="mi300x", ep=ranks, tp=ranks, phase=phase, prompt=prompt, batch=batch, products="float8"
    )


PROMPTS = (512, 1024, 2048)
VLLM = StepTime(
    _serve("deepseek-v3", 3200, 16),
    5.440,
    "vLLM 0.7.3 with the kernels that it has by default, DeepSeek-R1, 16 prompts of 3200 tokens at once, TP8: 99th "
    "percentile of the time to first token, read as the time after which all prompts were done",
    "https://github.com/dstackai/benchmarks/blob/main/Deepseek-R1/raw_data/online_results.csv",
)
PUBLISHED = (
    Published(
        "v2-lite-train",
        "DeepSeek-V2-Lite, Megatron, 8 x MI325X, EP8, 8 sequences of 4096 tokens on a rank",
        (_train("deepseek-v2-lite", 8, 8),),
        (1.11,),
        "table 3",
        {"forward": 0.876, "backward": 0.890, "total": 0.884},
        "how overlap is measured; attention without a fused kernel for latent attention",
        StepTime(
            _train("deepseek-v2-lite", 8, 8),
            8 * 4096 / 18143,
            "Primus with TorchTitan, the same model, sequences and cut: 18 143 tokens/s, read as those of one GPU",
            "https://github.com/AMD-AGI/Primus/pull/1022",
        ),
    ),
    Published(
        "v3-6-layers-train",
        "DeepSeek-V3 cut to 6 layers, Megatron, 8 x MI325X, EP8, 1 sequence of 4096 tokens on a rank",
        (_train(six_layers, 8, 1),),
        (1.04,),
        "table 3",
        {"forward": 0.929, "backward": 0.841, "total": 0.889},
        "as above; optimizer step and reduction of gradients are in the published time and not in ours",
    ),
    Published(
        "v3-6-layers-train-ep32",
        "the same on 4 nodes, EP32, 400 Gb/s between nodes",
        (_train(six_layers, 32, 1),),
        (1.22,),
        "figure 5",
        {},
        "strong scaling: how many sequences a rank has; here as many as on one node",
    ),
    Published(
        "llama4-scout-prefill",
        "Llama-4 Scout, vLLM, 8 x MI300X, EP8 and TP8, float8, 16 prompts of 512, 1024 or 2048 tokens",
        tuple(_serve("llama4-scout", prompt, 16) for prompt in PROMPTS),
        (1.122, 1.185),
        "section 5.2",
        {"total": 0.953},
        "which prompt belongs to which figure",
        VLLM,
    ),
    Published(
        "v2-prefill",
        "DeepSeek-V2, vLLM, 8 x MI300X, EP8 and TP8, float8, 16 prompts of 512, 1024 or 2048 tokens",
        tuple(_serve("deepseek-v2", prompt, 16) for prompt in PROMPTS),
        (1.082, 1.168),
        "section 5.2",
        {"total": 0.976},
        "which prompt belongs to which figure",
        VLLM,
    ),
    Published(
        "v3-prefill",
        "DeepSeek-V3, SGLang, 8 x MI300X, EP8 and TP8, 32 prompts of 2048 tokens",
        (_serve("deepseek-v3", 2048, 32),),
        (1.326,),
        "abstract of version 3; batch and prompt from the public benchmark script",
        {"total": 0.973},
        "precision: float8 as the checkpoint has it",
        StepTime(
            _serve("deepseek-v3", 512, 64),
            1.50748,
            "SGLang with AITER, 64 prompts of 512 tokens at once, TP8",
            "https://rocm.blogs.amd.com/artificial-intelligence/aiter-intergration-s/README.html",
        ),
    ),
    Published(
        "v3-decode",
        "DeepSeek-V3, SGLang, 2 nodes of 8 x MI300X, EP16 and TP16, 1024 sequences after 256 tokens",
        (_serve("deepseek-v3", 256, 1024, ranks=16, phase=DECODE),),
        (1.25,),
        "figure 7; the number is from a report on it",
        {},
        "which prompt the number belongs to; batch and prompt from the public benchmark script",
    ),
)
STEP_TIMES = tuple(dict.fromkeys(one.step_time for one in PUBLISHED if one.step_time is not None))
