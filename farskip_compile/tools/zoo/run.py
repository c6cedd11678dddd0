# SPDX-License-Identifier: Apache-2.0
"""Check a family of the zoo: built, captured whole, and rewired bit for bit as the eager oracle says.

Contract: a `Family` comes in, an `ZooEntry` of the table goes out: names, numbers and reasons, which become JSON and
back without loss. Whatever the model or this package raises becomes a reason; nothing is raised but what stops the
process, and defects of this package, whose traceback is needed.

1. Build the model tiny and random from its own configuration class.
2. Capture it once, as `torch.compile(fullgraph=True)` does; if that fails, once more after `prepare`. For each
   connectivity give the backend a copy of the graph (a capture costs more than all of its rewirings).
3. Run the compiled model once for each connectivity, and compare its logits bit for bit with the oracle's
   (`models.generic_form`), which sees no graph; under `none` with those of the graph as captured.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import groupby
from typing import Any

import torch
from torch import fx, nn

from farskip_compile._compat import CAPTURE_ERRORS, BackendCompilerFailed
from farskip_compile.base.json_files import JsonRecord
from farskip_compile.compiler.backend import Backend
from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.errors import FarSkipError, NoResidualStackError, PartialModelError
from farskip_compile.models.generic_form import GenericFarSkipForm
from farskip_compile.passes.residual.table import TermKind
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.tools.explain import not_captured
from farskip_compile.tools.explain.layout import short_place
from farskip_compile.tools.zoo.families import Family
from farskip_compile.tools.zoo.tiny import CannotBuild, build_tiny

REWIRED = ("full", "attention", "mlp")
CONNECTIVITIES = ("none", *REWIRED)
IDS_SHAPE = (2, 10)
VOCABULARY = 128
PLAIN = "plain"
"""The captured graph as it is."""
FACTOR = 8.0
"""How many times as much as the captured graph itself a rewired one may differ from eager mode."""
LETTERS = {
    TermKind.ATTENTION: "a",
    TermKind.MIXER: "x",
    TermKind.DENSE: "m",
    TermKind.SHARED: "s",
    TermKind.ROUTED: "r",
}


class ZooVerdict(StrEnum):
    """The outcome of one connectivity of one model."""

    EQUAL = "equal"
    """Rewired, and bit-equal to the oracle (under `none`: to the graph as captured)."""
    CLOSE = "equal within rounding"
    """The captured graph itself, not rewired, rounds differently from the model in eager mode; as close as that."""
    SAME = "nothing to change"
    """The model does not read what would be left out, and is equal to the oracle, or as close as `CLOSE`."""
    REFUSED = "refused"
    WRONG = "WRONG"
    """Rewired, and not what the oracle says."""
    UNCHECKED = "unchecked"
    """Rewired, and the oracle can't say what is right."""


@dataclass(frozen=True)
class ZooEntry(JsonRecord):
    """One line of the zoo's table."""

    ALSO_WRITTEN = ("status",)

    family: str
    class_name: str
    built: bool = True
    captured: bool = False
    prepared: tuple[str, ...] = ()
    """What `farskip_compile.prepare` had to change."""
    nodes: int = 0
    layers: str = ""
    """What each layer adds to the stream, such as `a m, 3 (a s r)`: attention or mixer, dense, shared, routed."""
    wiring: str = ""
    """That of the model as written."""
    verdicts: dict[str, str] = field(default_factory=dict)
    """By connectivity."""
    reason: str = ""
    where: str = ""
    """The line that is in the way: that of the model's source if the graph knows it."""
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """One word for the line."""
        found = {self.verdicts.get(name, "") for name in REWIRED}
        if not self.built:
            return "not built"
        if not self.captured:
            return "not captured"
        if ZooVerdict.WRONG in {*found, self.verdicts.get("none", "")}:
            return "WRONG"
        if ZooVerdict.UNCHECKED in found:
            return "unchecked"
        if not found.isdisjoint({ZooVerdict.EQUAL, ZooVerdict.CLOSE}):
            return "rewired" if ZooVerdict.REFUSED not in found else "rewired in part"
        return "refused" if ZooVerdict.REFUSED in found else "recognised"


def check_family(family: Family) -> ZooEntry:
    """Build, capture, rewire and compare one family."""
    blank = ZooEntry(family.model_type, family.class_name)
    if family.reason is not None:
        return replace(blank, built=False, reason=family.reason)
    try:
        model = build_tiny(family)
    except CannotBuild as error:
        return replace(blank, built=False, reason=error.reason, where=short_place(error.where.source or ""))
    ids = torch.randint(0, VOCABULARY, IDS_SHAPE, generator=torch.Generator().manual_seed(0))
    found = _check(blank, model, ids)
    if not found.captured:
        from farskip_compile.tools.prepare import prepare

        changes = prepare(model).changes
        found = _check(blank, model, ids) if changes else found
        found = replace(found, prepared=tuple(change.what for change in changes))
    return found


class _Copies:
    """A backend that keeps one compiled copy of the graph for each connectivity; `current` chooses which one runs."""

    def __init__(self) -> None:
        self.current = PLAIN
        self.compiled: dict[str, Callable[..., Any]] = {}
        self.reports: dict[str, CompileReport] = {}
        self.refusals: dict[str, FarSkipError] = {}

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Rewire copies of `module`."""
        for connectivity in CONNECTIVITIES:
            config = FarSkipConfig(
                connectivity=connectivity,  # type: ignore[arg-type]
                inner="eager",
                on_report=lambda report, name=connectivity: self.reports.__setitem__(name, report),  # type: ignore[misc]
            )
            try:
                compiled = Backend(config)(copy.deepcopy(module), inputs)
                if self.reports[connectivity].outcome is Outcome.NO_STACK:
                    raise NoResidualStackError("no sum that a sub-block reads from was found in the graph")
                if self.reports[connectivity].outcome is Outcome.FRAGMENT:
                    raise PartialModelError(self.reports[connectivity].reason)
            except FarSkipError as error:
                self.refusals[connectivity] = error
            else:
                self.compiled[connectivity] = compiled
        return lambda *args: self.compiled.get(self.current, module.forward)(*args)


def _check(blank: ZooEntry, model: nn.Module, ids: torch.Tensor) -> ZooEntry:
    """Capture, rewire and compare a model in eval mode; its parameters and mode stay as they are."""
    copies = _Copies()
    started = time.perf_counter()
    with _quiet(), torch.no_grad():
        torch.compiler.reset()
        compiled = torch.compile(model, backend=copies, fullgraph=True)
        try:
            plain = _logits(compiled(ids))
        except BackendCompilerFailed:
            raise  # a defect of this package
        except CAPTURE_ERRORS as error:
            seconds, refusal = time.perf_counter() - started, not_captured(error)
            where = short_place(refusal.where)
            return replace(blank, reason=f"{refusal.error}: {refusal.reason}", where=where, seconds=round(seconds, 2))
        seconds = time.perf_counter() - started
        drift = (plain - _logits(model(ids))).abs().max().item()

        def run(name: str) -> torch.Tensor:
            copies.current = name
            return _logits(compiled(ids))

        judged = {name: _judge(model, ids, name, run, copies, plain, drift) for name in CONNECTIVITIES}
        torch.compiler.reset()
    report = copies.reports.get("full") or copies.reports.get("none")
    reason, where = next((why for name in (*REWIRED, "none") if (why := judged[name][1:])[0]), ("", ""))
    return replace(
        blank,
        captured=True,
        nodes=report.nodes if report is not None else 0,
        layers=layers_of(report) if report is not None else "",
        wiring=report.wiring_before if report is not None else "",
        verdicts={name: str(verdict) for name, (verdict, *_) in judged.items()},
        reason=reason,
        where=where,
        seconds=round(seconds, 2),
    )


def _judge(
    model: nn.Module,
    ids: torch.Tensor,
    name: str,
    run: Callable[[str], torch.Tensor],
    copies: _Copies,
    plain: torch.Tensor,
    drift: float,
) -> tuple[ZooVerdict, str, str]:
    """(verdict on one connectivity, reason, where)."""
    if (error := copies.refusals.get(name)) is not None:
        return ZooVerdict.REFUSED, f"{type(error).__name__}: {error.reason}", short_place(str(error.where))
    logits = run(name)
    if name == "none":
        return ZooVerdict.EQUAL if torch.equal(logits, plain) else ZooVerdict.WRONG, "", ""
    try:
        expected = _logits(GenericFarSkipForm(model, name)(ids))  # type: ignore[arg-type]
    except NotImplementedError as reason:
        return ZooVerdict.UNCHECKED, f"NotImplementedError: the oracle can't tell: {reason}", ""
    difference = (logits - expected).abs().max().item()
    if not difference <= FACTOR * drift:
        return ZooVerdict.WRONG, "", ""
    if copies.reports[name].outcome is not Outcome.REWIRED:
        return ZooVerdict.SAME, "", ""
    return ZooVerdict.EQUAL if difference == 0.0 else ZooVerdict.CLOSE, "", ""


def _logits(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    logits = output["logits"] if "logits" in output else output[0]
    assert isinstance(logits, torch.Tensor)
    return logits


@contextmanager
def _quiet() -> Iterator[None]:
    """Entries say what Dynamo logs."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def layers_of(report: CompileReport) -> str:
    """What each layer adds, equal neighbours combined."""
    layers = [
        " ".join(LETTERS[report.table.terms[term].kind] for row in rows for term in row.terms)
        for _, rows in groupby(report.rows, key=lambda row: row.layer)
    ]
    runs = [(layer, len(list(same))) for layer, same in groupby(layers)]
    return ", ".join(layer if count == 1 else f"{count} ({layer})" for layer, count in runs)
