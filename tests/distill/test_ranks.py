# SPDX-License-Identifier: Apache-2.0
"""Distillation on two ranks is that of one process with the data of both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from farskip_compile import ConfigError, load_manifest
from farskip_compile.base.json_files import unsealed
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.distill import self_distill
from farskip_compile.models import ParallelConfig
from tests.compare import relative_difference
from tests.distill.common import EAGER, VOCABULARY, batches, small, weights
from tests.distributed.ranks import run_ranks

DATA, HELD_OUT = batches(6), batches(2, seed=7)
LAYERS = ("moe",)  # parts and copies of parameters; each rank compiles six times
OPTIONS = {
    "steps": 20, "learning_rate": 1e-3, "options": EAGER, "evaluate_every": 5, "clip": 0.5, "patience": None,
    "progress": False, "save_every": 10,
}  # fmt: skip
WAYS = {
    "ddp": {},
    "ep": {},
    "ddp, layers": {"stream_weight": 1.0, "accumulate": 2, "logits_memory": 3 * VOCABULARY * 8},
    "ep, layers": {"stream_weight": 1.0, "accumulate": 2, "logits_memory": 3 * VOCABULARY * 8},
}
"""How the model is spread, and what is asked for; with `layers`, these are compiled one by one."""


def layers_of(way):
    return ("moe", "moe") if way.endswith("layers") else LAYERS


def on_rank(rank, world_size, folder, way):
    """Each rank has every second batch; the second time, the first ten steps are those of an earlier run."""

    def make():
        group = ParallelConfig(ep_group=dist.group.WORLD, ep_mode="dropless") if way.startswith("ep") else None
        return small(layers=layers_of(way), parallel=group)

    options = {**OPTIONS, **WAYS[way], "held_out": HELD_OUT[rank : rank + 1]}
    options["compile"] = "layers" if way.endswith("layers") else "whole"
    # not the same number of tokens on each rank
    data = [ids[: 1 if rank else 2] for ids in DATA[rank::world_size]] * 14
    model = make()
    done = self_distill(model, data, output=f"{folder}/whole", **options)

    class Short(list):
        def __iter__(self):
            yield from self[: 10 * options.get("accumulate", 1) + 1]
            raise InterruptedError

    with pytest.raises(InterruptedError):
        self_distill(make(), Short(data), output=f"{folder}/parts", **options)
    again = make()
    self_distill(again, data, output=f"{folder}/parts", **options)
    same = all(torch.equal(value, weights(again)[name]) for name, value in weights(model).items())
    return weights(model), done.before, done.after, done.tokens, sorted(TrainingRanks(model).parts), same


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_are_one_process_with_all_data(way, tmp_path):
    results = run_ranks(on_rank, 2, str(tmp_path), way, timeout=400.0)
    whole, parallel = small(layers=layers_of(way)), way[:2]

    class Both:
        """The targets of both ranks in one batch, of which one rank's second row is none."""

        def __iter__(self):
            for first, second in zip(DATA[::2], DATA[1::2], strict=True):
                yield {"input_ids": torch.cat([first, second[:1]])}

    held_out = [torch.cat(HELD_OUT)]
    done = self_distill(whole, Both(), held_out=held_out, output=tmp_path / "one", **OPTIONS, **WAYS[way])
    one, two = (told(tmp_path / folder / "metrics.jsonl") for folder in ("one", "whole"))
    assert [line["step"] for line in two] == list(range(21))
    for line, other in zip(one, two, strict=True):  # the norm, too: what AdamW makes of a gradient has no scale
        assert other == {name: pytest.approx(value, rel=1e-6) for name, value in line.items()}
    expected = weights(whole)
    experts = {name for name in expected if ".experts." in name}
    for rank, (found, before, after, tokens, parts, same) in enumerate(results):
        assert same, "resumed"
        assert set(parts) == (experts if parallel == "ep" else set())
        assert tokens == done.tokens
        assert before.kl == pytest.approx(done.before.kl, rel=1e-9)
        assert after.kl == pytest.approx(done.after.kl, rel=1e-6)
        for name, value in found.items():
            wanted = expected[name]
            if name in parts:
                wanted = wanted.chunk(2)[rank]
            assert relative_difference(value, wanted) < 1e-6, name
    manifest = load_manifest(Path(tmp_path) / "whole" / "model")
    assert (manifest.fingerprint is None) == (parallel == "ep")
    files = sorted(path.name for path in (tmp_path / "whole" / "model").iterdir())
    if parallel == "ep":
        assert files == ["farskip.json", *(f"model-rank-0000{rank}-of-00002.safetensors" for rank in (0, 1))]
    else:
        assert files == ["farskip.json", "model.safetensors"]


def uneven(rank, world_size):
    with pytest.raises(ConfigError, match="held-out batches, the 2 ranks together 3"):
        self_distill(small(), DATA, **{**OPTIONS, "held_out": HELD_OUT[: 1 + rank]})


def test_ranks_with_different_numbers_of_held_out_batches_do_not_hang():
    run_ranks(uneven, 2)


def told(file):
    return [unsealed(line) for line in file.read_text().splitlines()]


class Parts(nn.Module):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.experts = nn.Linear(3, 3)
        self.router = nn.Linear(3, 3)
        with torch.no_grad():
            self.router.weight.fill_(0.5)
            self.router.bias.zero_()
            self.experts.weight.fill_(0.1).diagonal().fill_(1.0 + rank)
            self.experts.bias.zero_()


def what_is_a_part(rank, world_size):
    model = Parts(rank)
    with pytest.raises(ConfigError, match=r"experts\.bias is one number"):
        TrainingRanks(model)
    told = TrainingRanks(model, lambda name, _: name.startswith("experts."))
    assert told.parts == {"experts.weight", "experts.bias"}
    model.experts.bias.data[0] = float(rank)
    return TrainingRanks(model).parts


def test_a_bias_of_zeros_beside_parts_must_be_told():
    assert run_ranks(what_is_a_part, 2) == [{"experts.weight", "experts.bias"}] * 2
