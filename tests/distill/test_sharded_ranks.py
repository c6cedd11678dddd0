# SPDX-License-Identifier: Apache-2.0
"""Healing of models that FSDP2 has sharded is that of one process with the data of all ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, load_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from farskip_compile import ConfigError, describe, load_manifest
from farskip_compile.base.json_files import unsealed
from farskip_compile.healing.causal.batches import as_batch
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.causal.teacher import FrozenTeacher
from farskip_compile.healing.causal.tensor_files import local
from farskip_compile.healing.distill import self_distill
from farskip_compile.healing.distill.checkpoints import save_checkpoint
from farskip_compile.models import ParallelConfig
from tests.compare import relative_difference
from tests.distill.common import EAGER, VOCABULARY, batches, small, weights
from tests.distributed.ranks import run_ranks

DATA, HELD_OUT = batches(12), batches(2, seed=7)
OPTIONS = {
    "steps": 20, "learning_rate": 1e-3, "options": EAGER, "evaluate_every": 5, "clip": 0.5, "patience": None,
    "progress": False, "save_every": 10,
}  # fmt: skip
STREAMS = {"stream_weight": 1.0, "accumulate": 2, "logits_memory": 3 * VOCABULARY * 8}  # three positions at a time
WAYS = {
    "by layers": {},
    "by layers, in chunks": STREAMS,
    "resharded root, in chunks": STREAMS,  # whose head is gathered once more
    "the root": STREAMS,
    "replicated": {},  # over a mesh of two dimensions, of which one shards
    "experts apart": STREAMS,  # expert parallelism, and norms, of which all have copies: FSDP2 leaves both alone
    "folded": {"fold": True, "fold_batches": 2, "learning_rate": "auto"},
}


def rows_of(way):
    """Of the second rank's batches: not the same number of tokens on each rank, but a fold needs one shape."""
    return 2 if way == "folded" else 1


def spread(way):
    apart = way.startswith("experts")
    model = small(parallel=ParallelConfig(ep_group=dist.group.WORLD, ep_mode="dropless") if apart else None)
    size = dist.get_world_size()
    two = way.startswith("replicated")
    mesh = init_device_mesh("cpu", (size, 1) if two else (size,), mesh_dim_names=("copies", "shards") if two else None)
    left_alone = {value for name, value in model.named_parameters() if ".experts." in name or value.dim() == 1}
    ignored = left_alone if apart else None
    for layer in model.layers if not way.startswith("the root") else ():
        fully_shard(layer, mesh=mesh, ignored_params=ignored)
    fully_shard(model, mesh=mesh, ignored_params=ignored, reshard_after_forward=way.startswith("resharded") or None)
    return model


def whole_weights(model):
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in weights(model).items()
    }


class Short(list):
    def __iter__(self):
        yield from self[:11]
        raise InterruptedError


def on_rank(rank, world_size, folder, way):
    data = [ids[: rows_of(way) if rank else 2] for ids in DATA[rank::world_size]] * 7
    options = {**OPTIONS, **WAYS[way], "held_out": HELD_OUT[rank : rank + 1]}
    options["compile"] = "whole" if way == "the root" else "layers"
    model, same = spread(way), None
    done = self_distill(model, data, output=f"{folder}/whole", **options)
    if way == "by layers":  # the second time, the first ten steps are those of an earlier run
        again = spread(way)
        with pytest.raises(InterruptedError):
            self_distill(again, Short(data), output=f"{folder}/parts", **options)
        again = spread(way)
        self_distill(again, data, output=f"{folder}/parts", **options)
        ours = weights(again)
        same = all(torch.equal(value.to_local(), ours[name].to_local()) for name, value in weights(model).items())
    return whole_weights(model), done.before.kl, done.after.kl, done.tokens, same


@pytest.mark.parametrize("way", WAYS)
def test_it_is_one_process_with_all_data(way, tmp_path):
    results = run_ranks(on_rank, 2, str(tmp_path), way, timeout=400.0)
    one, options = small(), {**OPTIONS, **WAYS[way], "held_out": [torch.cat(HELD_OUT)], "output": tmp_path / "one"}
    done = self_distill(one, Both(rows_of(way)), **options)
    ours, theirs = (told(tmp_path / name / "metrics.jsonl") for name in ("one", "whole"))
    assert [line["step"] for line in theirs] == list(range(21))
    for line, other in zip(ours, theirs, strict=True):  # the norm, too: what AdamW makes of a gradient has no scale
        assert other == {name: pytest.approx(value, rel=1e-6) for name, value in line.items()}
    expected = weights(one)
    for rank, (found, before, after, tokens, same) in enumerate(results):
        assert tokens == done.tokens
        assert before == pytest.approx(done.before.kl, rel=1e-9)
        assert after == pytest.approx(done.after.kl, rel=1e-6)
        assert same in (None, True), "resumed"
        for name, value in found.items():
            apart = way == "experts apart" and ".experts." in name
            assert relative_difference(value, expected[name].chunk(2)[rank] if apart else expected[name]) < 1e-6, name
    manifest, folder = load_manifest(tmp_path / "whole" / "model"), tmp_path / "whole" / "model"
    if way == "experts apart":
        assert manifest.fingerprint is None
        files = [load_file(folder / f"model-rank-0000{rank}-of-00002.safetensors") for rank in (0, 1)]
        assert all(torch.equal(files[rank][name], value) for rank in (0, 1) for name, value in results[rank][0].items())
    else:
        assert manifest == done.manifest
        again = small(seed=5)
        load_model(again, str(folder / "model.safetensors"))
        assert all(torch.equal(value, results[0][0][name]) for name, value in weights(again).items())


class Both(list):
    """The targets of both ranks in one batch."""

    def __init__(self, rows):
        super().__init__(
            {"input_ids": torch.cat([one, two[:rows]])} for one, two in zip(DATA[::2], DATA[1::2], strict=True)
        )


def told(file):
    return [unsealed(line) for line in file.read_text().splitlines()]


def teacher_on_rank(rank, world_size):
    batch, model, plain = as_batch(HELD_OUT[rank], torch.device("cpu")), spread("by layers"), small()
    teacher = FrozenTeacher(model)
    shards = sum(local(teacher.values[name]).numel() for name, _ in model.named_parameters())
    model(batch.inputs["input_ids"]).square().mean().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    moved = whole_weights(model)
    with torch.no_grad():
        expected, student = plain.eval()(batch.inputs["input_ids"]), model(batch.inputs["input_ids"])
    said, again = teacher(batch), teacher(batch)
    kept = whole_weights(model)
    return (
        torch.equal(said, expected) and torch.equal(again, expected),
        torch.equal(student, expected),
        all(torch.equal(value, kept[name]) for name, value in moved.items()),
        shards / sum(value.numel() for value in plain.parameters()),
    )


def test_the_teacher_is_one_more_copy_of_the_shards():
    for same, student, stays, share in run_ranks(teacher_on_rank, 2):
        assert (same, student, stays) == (True, False, True)
        assert share < 0.6


class Fails(nn.Module):
    """The model, which fails after the layers in its so many-th call, on all ranks."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.call, self.calls = model, call, 0

    def forward(self, ids):
        hidden = self.model(ids)
        if not torch.compiler.is_compiling():
            self.calls += 1
        if self.calls == self.call:
            raise InterruptedError
        return hidden


def failed_on_rank(rank, world_size, *calls):
    return [failed(call) for call in calls]


def failed(call):
    torch.compiler.reset()
    model = small()
    failing = Fails(model, call)
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(failing)
    start = whole_weights(model)
    with pytest.raises(InterruptedError):
        self_distill(failing, DATA, held_out=HELD_OUT, compile="layers", **OPTIONS)
    found = weights(model)
    assert all(isinstance(value, DTensor) for value in found.values())
    moved = [name for name, value in whole_weights(model).items() if not torch.equal(value, start[name])]
    failing.call = 0
    with torch.no_grad():
        after = failing(HELD_OUT[0])
    plain = small(seed=5)
    plain.load_state_dict(dict(model.named_buffers()) | whole_weights(model))
    return bool(moved), torch.equal(after, plain(HELD_OUT[0])), "forward" in vars(model.layers[0])


def test_a_pass_that_fails_leaves_the_best_weights():
    """Of the teacher before the first step, and of both in the sixth."""
    for found in run_ranks(failed_on_rank, 2, 2, 20, 21, timeout=300):
        assert found == [(False, True, False), (True, True, False), (True, True, False)]


class Wide(nn.Module):
    """A model with a distributed tensor that no unit holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))


def refused_on_rank(rank, world_size):
    alone = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards"))["shards"]
    model = fully_shard(Wide(), mesh=alone)
    with pytest.raises(ConfigError, match="is sharded over 1 of 2 ranks"):
        TrainingRanks(model).wrap(model)
    model, whole = Wide(), init_device_mesh("cpu", (2,))
    model.layers[0].weight = nn.Parameter(distribute_tensor(model.layers[0].weight.data, whole, [Shard(0)]))
    fully_shard(model, mesh=whole, ignored_params={model.layers[0].weight})
    with pytest.raises(ConfigError, match=r"layers\.0\.weight is a distributed tensor which no unit"):
        TrainingRanks(model).wrap(model)
    TrainingRanks(model, lambda name, _: name == "layers.0.weight").wrap(model)


def test_what_is_sharded_otherwise_is_refused():
    run_ranks(refused_on_rank, 2)


def saved_on_rank(rank, world_size, folder):
    from farskip_compile.models.transformers_form import tiny_deepseek_v3
    from farskip_compile.tools.prepare import prepare

    model = tiny_deepseek_v3()
    prepare(model)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    manifest = describe(model, HELD_OUT[0], use_cache=False)
    if rank == 0:
        model.save_pretrained(f"{folder}/plain")
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    save_checkpoint(model, manifest, Path(folder) / "sharded", TrainingRanks(model))


def test_a_model_of_transformers_writes_itself(tmp_path):
    pytest.importorskip("transformers")
    run_ranks(saved_on_rank, 2, str(tmp_path))
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "sharded"))
    assert found.keys() == expected.keys()
    assert "lm_head.weight" not in found
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert load_manifest(tmp_path / "sharded").fingerprint is not None
    assert sorted(path.name for path in (tmp_path / "sharded").iterdir()) == [
        "config.json", "farskip.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
