# SPDX-License-Identifier: Apache-2.0
"""`fold`: closed-form repair of a rewired model, sub-block by sub-block.

In:    a causal model with trained weights, the connectivity that it is to have, a few batches of token ids.
Out:   the same model with other weights, which under that connectivity is nearer to the original; `Folded` says what
       was changed, by how much the held-out KL fell, and what was left alone.
Never: trains; adds a parameter, or changes the shape of one; keeps a change by which held-out KL does not fall.

A row that leaves out terms reads, after its norm, `now` [tokens, H] where the original reads `original`. With the
matrix M for which `now @ M` is nearest to `original` (least squares), each weight W that reads the value becomes W M':
it then gives for `now` what it gave for the best guess of `original`.

Algorithm, with one forward of both graphs in all, and one batch in front:
1. Capture both graphs. Find the reads of the rows that change, and their linear readers, on one batch.
2. The original's answers to the held-out batches.
3. For each read, in order: run the original past its last reader; run the rewired model to its first one, with all that
   is folded already; fit M; multiply it into the readers. For each term: the same with its writers; what it should be
   is the original's term, and what earlier terms of the rewired model lack (`short`).
4. Run the rest on the held-out batches: if the KL has not fallen, put the weights back.

What the ranks hold of tokens and weights does not matter: Gram matrices are added up over all of them, and each changes
its own part of each weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.errors import ConfigError, UnsupportedPatternError
from farskip_compile.healing.causal.batches import Batch, as_batch
from farskip_compile.healing.causal.identity import bytes_of, checksum
from farskip_compile.healing.causal.ranks import TrainingRanks, run_alone
from farskip_compile.healing.causal.teacher import evaluating
from farskip_compile.healing.fold.judge import Judge
from farskip_compile.healing.fold.multiply import multiply
from farskip_compile.healing.fold.record import Folded, FoldedRead
from farskip_compile.healing.fold.short import Shortfall
from farskip_compile.healing.fold.sites import FoldSite, Search
from farskip_compile.healing.fold.solve import NormalEquations
from farskip_compile.healing.fold.states import ANEW, States, numbers_of, put_back
from farskip_compile.healing.fold.tape import Tape
from farskip_compile.healing.fold.twins import ChannelTwins
from farskip_compile.passes.rewire.request import Connectivity, LayerRange

OnSite = Callable[[str, int, int], None]
"""Called with what is done (`search`, `fold`), how many rows or sites of it, and of how many."""


@dataclass(frozen=True)
class _Text:
    """What a fold is fitted on, and what it is judged by."""

    calibration: Sequence[Batch]
    held_out: Sequence[Batch]
    ranks: TrainingRanks


def fold(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    held_out: Iterable[Any],
    connectivity: Connectivity = "full",
    layers: LayerRange = None,
    options: Mapping[str, Any] | None = None,
    outputs: bool = True,
    folder: str | Path | None = None,
    on_site: OnSite = lambda what, done, total: None,
) -> Folded:
    """Change the weights of `model` in closed form, so that rewiring it does less damage.

    Args:
        model: as in `self_distill`; not compiled. Parameters may be parts of distributed tensors (FSDP2), or of experts
            that are spread over ranks.
        calibration: batches of token ids, as in `self_distill`, of one shape; some hundred times as many tokens in
            all as the stream is wide, or more. They are training data: take them from what healing is trained on.
        held_out: batches of the same shape, by which each change is judged.
        connectivity: what the model is to be compiled with, as in `FarSkipConfig`.
        layers: as in `FarSkipConfig`.
        options: further options of the backend that matter to the graph, such as `kinds`.
        outputs: whether to change what rows add, too, and not only what they read.
        folder: where to keep what is done, and to continue from.
        on_site: called with what is done (`search`, `fold`), how many rows or sites of it, and of how many.

    Raises:
        ConfigError: no batches, or of several shapes; `folder` holds another fold, or another process writes into it.
        UnsupportedPatternError: nothing that changes has a linear reader.
        FarSkipError: the model can't be rewired as asked.
    """
    ranks = TrainingRanks(model, lambda name, parameter: False)
    batches, judged = ([as_batch(one, ranks.device) for one in given] for given in (calibration, held_out))
    if not batches or not judged:
        raise ConfigError("a fold needs calibration and held-out batches", way_out="at least one of each")
    _same_number_on_all(ranks, batches, judged)
    config = FarSkipConfig.from_options({**(options or {}), "connectivity": connectivity, "layers": layers})
    about = {
        "model": checksum(model),
        "request": [config.to_json(), outputs],
        "number of ranks": ranks.size,
        "text": _hash([*batches, *judged]),
    }
    with run_alone(Path(folder) if folder is not None else None, ranks, ANEW):
        states = States(Path(folder) if folder is not None else None, about, ranks)
        torch.compiler.reset()
        try:
            with torch.random.fork_rng(), torch.no_grad(), evaluating(model):
                return _Fold(model, _Text(batches, judged, ranks), config, states, outputs, on_site).run()
        finally:
            torch.compiler.reset()


class _Fold:
    """The algorithm of the module."""

    def __init__(
        self, model: nn.Module, text: _Text, config: FarSkipConfig, states: States, outputs: bool, on_site: OnSite
    ) -> None:
        self.batches, self.ranks, self.states, self.on_site = text.calibration, text.ranks, states, on_site
        self.twins = twins = ChannelTwins(model, config)
        self.parameters = dict(model.named_parameters())
        inputs = [twins.inputs(batch) for batch in self.batches]
        search = Search(twins, inputs[0], self._agree)
        self.sites, self.alone = search.run(lambda *count: on_site("search", *count), outputs=outputs)  # 1
        if not self.sites:
            changed = [row.name for row in twins.table.rows if row.left_out]
            raise UnsupportedPatternError(
                f"nothing reads linearly what changes for {', '.join(changed)}",
                way_out="another connectivity; or healing without a fold",
            )
        self.judge = Judge(twins, text.held_out, self.ranks)  # 2
        self.short = Shortfall(twins, [site.value for site in self.sites if site.outputs])
        here, there = self.short.watched
        here, there = (
            [*here, *(site.value for site in self.sites if not site.outputs)],
            [*there, *(site.original for site in self.sites)],
        )
        self.original = [Tape(twins.teacher, given, there) for given in inputs]
        self.rewired = [Tape(twins.student, given, here) for given in inputs]

    def run(self) -> Folded:
        before = kl = self.judge.kl()
        done = []
        for number, site in enumerate(self.sites):  # 3
            self.on_site("fold", number, len(self.sites))
            done.append(self._one(number, site, kl))
            kl = done[-1].kl if done[-1].accepted else kl
        self.on_site("fold", len(self.sites), len(self.sites))
        (tokens,) = self.ranks.sum(sum(batch.tokens for batch in self.batches))
        return Folded(tuple(done), tuple(self.alone), before, kl, int(tokens), self.judge.tokens)

    def _one(self, number: int, site: FoldSite, kl: float) -> FoldedRead:
        for tape in self.original:
            tape.advance(site.there)
        for tape in (*self.rewired, *self.judge.tapes):
            tape.advance(site.here)
        self.short.pass_by(self.rewired, self.original)
        mine = {name: self.parameters[name] for name in site.axes}
        done = self.states.done(number, mine)
        if done is None:
            done = self._folded(site, mine, kl)
            self.states.write(number, done, mine)
        for at, (rewired, original) in enumerate(zip(self.rewired, self.original, strict=True)):
            if site.outputs:
                self.short.settle(at, *self._both(at, site))
            rewired.seen.pop(site.value, None)
            original.seen.pop(site.original)
        return done

    def _folded(self, site: FoldSite, mine: Mapping[str, torch.Tensor], kl: float) -> FoldedRead:
        solution = self._pairs(site).solve(self._add_up)
        if solution is None:
            return FoldedRead(site.row, tuple(mine), 0.0, 0.0, kl, kl, accepted=False, outputs=site.outputs)
        matrix = self._of_first_rank(solution.matrix)
        kept = numbers_of(mine)
        for name, axis in site.axes.items():
            multiply(mine[name], axis, matrix.T if site.outputs else matrix)
        after = self.judge.kl()  # 4
        accepted = after < kl
        if not accepted:
            put_back(mine, kept)
        return FoldedRead(site.row, tuple(mine), solution.explained, solution.ridge, after, kl, accepted, site.outputs)

    def _pairs(self, site: FoldSite) -> NormalEquations:
        found: NormalEquations | None = None
        for at, batch in enumerate(self.batches):
            now, then = (one.reshape(-1, one.shape[-1]) for one in self._both(at, site))
            if site.outputs:
                then = then + self.short.of(at, then)
            now, then = _without_padding(now, batch), _without_padding(then, batch)
            found = found or NormalEquations(now.shape[-1], now)
            found.add(now, then)
        assert found is not None
        return found

    def _both(self, at: int, site: FoldSite) -> tuple[torch.Tensor, torch.Tensor]:
        """What the value of a site is for a batch: rewired, a term with its writers as they are now; and as written."""
        tape = self.rewired[at]
        now = tape.ahead(site.value) if site.outputs else tape.seen[site.value]
        return now, self.original[at].seen[site.original]

    def _agree(self, verdict: bool) -> bool:
        (against,) = self.ranks.sum(not verdict)
        return not against

    def _add_up(self, value: torch.Tensor) -> None:
        if self.ranks.active:
            dist.all_reduce(value)

    def _of_first_rank(self, matrix: torch.Tensor) -> torch.Tensor:
        """The same bits everywhere: weights that all ranks have stay equal."""
        if self.ranks.active:
            dist.broadcast(matrix, 0)
        return matrix


def _without_padding(rows: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[tokens, H], without padding if there is a row for each token of the batch."""
    mask = batch.inputs.get("attention_mask")
    return rows[mask.flatten() != 0] if mask is not None and mask.numel() == len(rows) else rows


def _same_number_on_all(ranks: TrainingRanks, *given: Sequence[Batch]) -> None:
    for batches in given:
        total, squares = ranks.sum(len(batches), len(batches) ** 2)
        if squares * ranks.size != total**2:
            raise ConfigError("the ranks have different numbers of batches", way_out="equally many on each rank")


def _hash(batches: Sequence[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for name, value in sorted(batch.inputs.items()):
            digest.update(f"{name} {list(value.shape)}".encode())
            digest.update(bytes_of(value))
    return digest.hexdigest()
