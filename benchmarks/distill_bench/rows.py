# SPDX-License-Identifier: Apache-2.0
"""The experiment: its scales, and its rows. What each row starts from, learns from, and under which connectivity.

In:    the name of a model, of a corpus, and a scale.
Out:   `Row`s, each after those it needs.
Never: depends on the speed of the machine: equal numbers, texts and versions give equal results. A row that heals in
       the order in which its teacher has read the text.

    whole        two corpora; half a million parameters, 6 layers; three teachers of each model on the first corpus
    larger       one corpus; 1.3 million parameters, 6 layers; one teacher of each model, the main rows
    quick        five minutes: 3 layers, one teacher, text that ships with Python
    smoke        a few steps, for tests

    teacher      the original architecture, trained on the text; one for each seed
    unhealed     the teacher's weights under a connectivity, as they are
    folded       the same, after the fold alone (`farskip_compile.healing.fold`)
    paper        healed: KL to the teacher, AdamW, batches as large as the teacher's (arXiv 2511.11505, section 3.1)
    fold+paper   the fold, then the same
    best         the fold, then small batches, KL and a decaying match of the stream
    text         healed by the text alone, with the paper's optimizer
    control      the teacher itself, trained on by the text with the paper's optimizer: the same new start of the
                 learning rate, the same tokens, nothing rewired
    front        no weights: what each set of sub-blocks would do to the text, and hide
    plan         the sub-blocks that free 80 % of what `full` frees, for the least damage

A number after a name is the part of the teacher's tokens in per cent; without one it is a tenth. Calibration tokens of
a fold are taken off the tokens to train on; a fold alone has 16 batches of them, a quarter of a per cent of the
teacher's.

Seconds of one core at the scale `whole`, measured, two processes beside each other on two cores; for half of the time
other programs ran as well, and a teacher took up to 690 (alone: 550):

    7 teachers                          7 x 631                                                     4417
    a tenth, for 7 teachers             7 x (unhealed 16 + folded 40 + best 221)                    1934
    paper's recipe, controls            3 x (150 + 116)                                              797
    fold + paper's, by text             2 x (162 + 112)                                              548
    3 and 30 %                          2 x (67 + 104) + 328 + 462                                  1130
    4 connectivities                    4 x (unhealed 14 + folded 32 + best 219)                    1060
    a plan                              2 x (front 234 + unhealed 18 + folded 33 + best 210)         988

in all 10870; 90 minutes of two cores are 10800. So what is in the rows of one model alone is what the other one need
not show again: the second corpus, 30 %, and the connectivities. The teachers see 6.9 million tokens, twice as many as
those of earlier versions, and 13 of them per parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from farskip_compile.base.choices import ConnectivityName

Corpus = Literal["dictionary", "kernel", "topics"]
Kind = Literal["teacher", "unhealed", "folded", "healed", "control", "front"]
TENTH = 0.1
FREED = 0.8
"""Fraction of the communication freed by `full` that the plan is to free."""
RANKS, TOKENS, PROFILE = 8, 4096, "h100"
"""For the plan, at every scale: ranks with experts, tokens of each, and the hardware. With these widths communication
takes about a third as long as compute."""
MEMORY_INCREASE = 0.5
"""For the plan: in a model of so few layers, what is in flight weighs more than in a deep one."""
WITH_SHARED = frozenset({"deepseek_v3"})
"""Models with shared experts; `ladder` is `full` in the other one."""
WITH_ALL_ROWS = "qwen3_moe"
"""The model that has rows on the second corpus, with the largest part of the tokens, and of other connectivities."""
LARGE_PART = 0.2
"""From this part of the tokens on, rows are of `WITH_ALL_ROWS` alone."""
OTHER_SEED = 1000
"""A row that starts from a teacher has the teacher's seed plus this: it reads the text in another order."""


@dataclass(frozen=True)
class Recipe:
    """How a row heals."""

    name: str
    learning_rate: float
    batch: int = 8
    """Sequences of a step."""
    fold: bool = False
    stream: float = 0.0
    """Weight of the match of the stream; 0: none."""
    warm_up: int = 100
    """Steps, or a tenth of all if that is less."""
    by_text: bool = False
    """Next-token loss instead of KL to the teacher."""


PAPER = Recipe("paper", 2e-3)
FOLD_PAPER = Recipe("fold+paper", 2e-3, fold=True)
BEST = Recipe("best", 2.5e-3, batch=4, fold=True, stream=10.0, warm_up=20)
TEXT = Recipe("text", 2e-3, by_text=True)
RECIPES = {recipe.name: recipe for recipe in (PAPER, FOLD_PAPER, BEST, TEXT)}


@dataclass(frozen=True)
class Scale:
    """How large the models are, how long they train, and on how much text they are judged."""

    name: str
    corpora: tuple[Corpus, ...]
    """The first one has all seeds and all rows; the others one teacher, and the main rows."""
    layers: int
    hidden: int
    vocabulary: int
    steps: int
    """Optimizer steps of a teacher."""
    judged: int
    """Sequences of each source that a row is judged by."""
    validated: int
    """Other sequences, by which the best weights of a run are chosen."""
    seeds: tuple[int, ...] = (0,)
    """Of the teachers."""
    parts: tuple[float, ...] = (TENTH,)
    """Of the teacher's tokens, in the curves."""
    others: tuple[ConnectivityName, ...] = ()
    """Connectivities besides `full`: `ladder` of models `WITH_SHARED` experts, others of `WITH_ALL_ROWS`."""
    short: bool = False
    """Whether there are the main rows alone."""
    compiled: bool = False
    """Whether teachers are trained under Inductor; the rest runs operator by operator, at any scale."""
    learning_rate: float = 3e-3
    """Of the teachers."""
    calibration: int = 4
    """Batches of a fold that is trained afterwards: they are taken off what is trained on."""
    calibration_alone: int = 16
    """Batches of a fold alone, which has no training to repair what too few tokens have made of it."""
    new_tokens: int = 32
    """Tokens of a text sample."""
    batch: int = 8
    """Sequences per step of a teacher."""
    sequence: int = 128
    """Tokens per sequence."""

    def tokens(self, batch: int | None = None) -> int:
        """Targets of a step."""
        return (self.batch if batch is None else batch) * (self.sequence - 1)

    def seeds_of(self, corpus: Corpus) -> tuple[int, ...]:
        """The seeds of the teachers on a corpus."""
        return self.seeds if corpus == self.corpora[0] else self.seeds[:1]

    def heal_steps(self, part: float, recipe: Recipe) -> int:
        """Steps of healing by `part` of the teacher's tokens, without those that calibrate a fold."""
        left = part * self.steps * self.tokens() - recipe.fold * self.calibration * self.batch * self.sequence
        return max(1, int(left / self.tokens(recipe.batch) + 1e-9))


WHOLE = Scale(
    name="whole",
    corpora=("dictionary", "kernel"),
    layers=6,
    hidden=64,
    vocabulary=1024,
    steps=6800,
    judged=256,
    validated=96,
    seeds=(0, 1, 2),
    parts=(0.03, TENTH, 0.3),
    others=("attention", "mlp", "lag2", "ladder"),
    compiled=True,
)
LARGER = Scale(
    name="larger",
    corpora=("dictionary",),
    layers=6,
    hidden=96,
    vocabulary=2048,
    steps=6800,
    judged=256,
    validated=96,
    short=True,
    compiled=True,
)
QUICK = Scale("quick", ("topics",), 3, 64, 512, 400, judged=64, validated=32)
SMOKE = Scale(
    "smoke", ("topics",), 4, 32, 300, 20, judged=8, validated=8, calibration=1, calibration_alone=1, new_tokens=4
)


@dataclass(frozen=True)
class Row:
    """One training, or one evaluation."""

    model: str
    corpus: Corpus
    name: str
    """With the seed of its teacher; unique per model and corpus."""
    kind: Kind
    seed: int = 0
    """Of its teacher."""
    connectivity: ConnectivityName | Literal["plan"] = "full"
    recipe: str = ""
    """Of `RECIPES`; empty: nothing is trained from a teacher."""
    part: float = 0.0
    """Of the teacher's tokens."""
    needs: tuple[str, ...] = ()
    """Names of rows of the same model and corpus."""

    @property
    def key(self) -> str:
        """Unique in the experiment, and usable as a folder name."""
        return f"{self.setting}-{self.name}"

    @property
    def setting(self) -> str:
        """Model and corpus."""
        return f"{self.model}-{self.corpus}"

    @property
    def label(self) -> str:
        """The name without the seed: rows with equal labels differ in their teacher alone."""
        return self.name.partition("@")[0]


def rows_of(model: str, corpus: Corpus, scale: Scale) -> list[Row]:
    """None: the model has no rows on this corpus."""
    return list(_rows(model, corpus, scale))


def _rows(model: str, corpus: Corpus, scale: Scale) -> Iterator[Row]:
    main = corpus == scale.corpora[0]
    if not main and model != WITH_ALL_ROWS:
        return
    for seed in scale.seeds_of(corpus):
        start = _Start(model, corpus, seed)
        yield start.row("teacher", "teacher", "none", needs=())
        yield start.row("unhealed-full", "unhealed")
        yield start.row("folded-full", "folded")
        yield start.healed(BEST, "full")
        if seed != scale.seeds[0]:
            continue
        yield start.healed(PAPER, "full")
        yield start.row("control", "control", "none", recipe=TEXT.name, part=TENTH)
        if main and not scale.short:
            yield from _more(start, scale)


def _more(start: _Start, scale: Scale) -> Iterator[Row]:
    """Of the first teacher of a model."""
    yield start.healed(FOLD_PAPER, "full")
    yield start.healed(TEXT, "full")
    for part in scale.parts:
        if part != TENTH and (part < LARGE_PART or start.model == WITH_ALL_ROWS):
            yield start.healed(PAPER, "full", part)
            yield start.healed(BEST, "full", part)
    for connectivity in scale.others:
        if start.model not in (WITH_SHARED if connectivity == "ladder" else (WITH_ALL_ROWS,)):
            continue
        yield start.row(f"unhealed-{connectivity}", "unhealed", connectivity)
        yield start.row(f"folded-{connectivity}", "folded", connectivity)
        yield start.healed(BEST, connectivity)
    front = start.row("front", "front")
    yield front
    needs = (f"teacher@{start.seed}", front.name)
    yield start.row("unhealed-plan", "unhealed", "plan", needs=needs)
    yield start.row("folded-plan", "folded", "plan", needs=needs)
    yield start.healed(BEST, "plan", needs=needs)


@dataclass(frozen=True)
class _Start:
    """The teacher from which rows start."""

    model: str
    corpus: Corpus
    seed: int

    def row(
        self,
        label: str,
        kind: Kind,
        connectivity: ConnectivityName | Literal["plan"] = "full",
        *,
        recipe: str = "",
        part: float = 0.0,
        needs: tuple[str, ...] | None = None,
    ) -> Row:
        needs = (f"teacher@{self.seed}",) if needs is None else needs
        name = f"{label}@{self.seed}"
        return Row(self.model, self.corpus, name, kind, self.seed, connectivity, recipe, part, needs)

    def healed(
        self,
        recipe: Recipe,
        connectivity: ConnectivityName | Literal["plan"],
        part: float = TENTH,
        needs: tuple[str, ...] | None = None,
    ) -> Row:
        label = f"{recipe.name}-{connectivity}{_percent(part)}"
        return self.row(label, "healed", connectivity, recipe=recipe.name, part=part, needs=needs)


def _percent(part: float) -> str:
    return "" if part == TENTH else f"-{100 * part:.0f}"
