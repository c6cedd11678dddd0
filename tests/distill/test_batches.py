# SPDX-License-Identifier: Apache-2.0
"""Batches, and a feed that a later run goes on from."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from farskip_compile import ConfigError
from farskip_compile.healing.causal.batches import IGNORED, Feed, as_batch

CPU = torch.device("cpu")
IDS = torch.arange(40).view(10, 4)


def test_targets_are_the_next_tokens_that_count():
    ids, mask = IDS[:2], torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert torch.equal(as_batch(ids, CPU).targets, ids[:, 1:])
    batch = as_batch({"input_ids": ids, "attention_mask": mask}, CPU)
    assert batch.targets.tolist() == [[1, 2, 3], [5, IGNORED, IGNORED]]
    assert (batch.tokens, sorted(batch.inputs)) == (4, ["attention_mask", "input_ids"])
    labels = torch.full_like(ids, IGNORED)
    labels[0, 3] = 7
    assert as_batch({"input_ids": ids, "labels": labels}, CPU).targets.tolist() == [
        [IGNORED, IGNORED, 7],
        [IGNORED] * 3,
    ]
    assert as_batch([ids], CPU).tokens == 6


@pytest.mark.parametrize("wrong", [IDS.float(), IDS[0], IDS[:, :1], "text", {"ids": IDS}])
def test_what_is_no_batch(wrong):
    with pytest.raises(ConfigError, match="not a batch of token ids"):
        as_batch(wrong, CPU)


def test_a_feed_starts_anew_when_the_data_ends():
    feed = Feed([IDS[:2], IDS[2:4]], CPU)
    seen = [next(feed).inputs["input_ids"][0, 0].item() for _ in range(5)]
    assert seen == [0, 8, 0, 8, 0]
    assert (feed.position.epoch, feed.position.taken) == (2, 1)


def test_data_that_can_be_gone_through_once_only():
    feed = Feed(iter([IDS[:2]]), CPU)
    next(feed)
    with pytest.raises(ConfigError, match="can't be traversed again"):
        next(feed)
    with pytest.raises(ConfigError, match="is empty"):
        next(Feed([], CPU))


@pytest.mark.parametrize("taken", [1, 4, 5, 6, 13])
def test_a_later_run_goes_on_where_this_one_stopped(taken):
    """In the shuffled order, and with the random numbers that would have come next."""

    def loader():
        return DataLoader(TensorDataset(IDS), batch_size=2, shuffle=True)

    def draw(feed):
        return (next(feed).inputs["input_ids"].tolist(), torch.rand(1).item())

    torch.manual_seed(3)
    feed = Feed(loader(), CPU)
    for _ in range(taken):
        draw(feed)
    position = dataclasses.replace(feed.position)
    generator = torch.get_rng_state()
    expected = [draw(feed) for _ in range(9)]
    torch.manual_seed(99)
    again = Feed(loader(), CPU, position)
    torch.set_rng_state(generator)
    assert [draw(again) for _ in range(9)] == expected
