"""Check one model of the zoo: captured whole, table, and rewired bit for bit as the eager oracle says.

Contract: a model in eval mode and token ids come in, a `Finding` goes out. Whatever the model or this package raises
becomes a finding; nothing is raised but what stops the process. The model's parameters and mode stay as they are.

1. Capture the model once, as `torch.compile(fullgraph=True)` does; for each connectivity give the backend a copy of
   the graph (a capture costs more than all of its rewirings).
2. Run the compiled model once for each connectivity, and compare its logits bit for bit with the oracle's
   (`models.generic_form`), which sees no graph; under `none` with those of the graph as captured.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import fx, nn

from farskip_compile._compat import BackendCompilerFailed, TorchDynamoException
from farskip_compile.backend import Backend
from farskip_compile.config import FarSkipConfig
from farskip_compile.errors import FarSkipError, NoResidualStackError
from farskip_compile.explain import Refusal, not_captured
from farskip_compile.models.generic_form import GenericFarSkipForm
from farskip_compile.report.compile import CompileReport, Outcome

CONNECTIVITIES = ("none", "full", "attention", "mlp")


class Verdict(StrEnum):
    """What became of one connectivity of one model."""

    EQUAL = "equal"
    """Rewired, and bit-equal to the oracle (under `none`: to the graph as captured)."""
    CLOSE = "equal within rounding"
    """The captured graph itself, not rewired, rounds otherwise than the model in eager mode does; as close as that."""
    SAME = "nothing to change"
    """The model does not read what would be left out; bit-equal to the oracle and to the model itself."""
    REFUSED = "refused"
    WRONG = "WRONG"
    """Rewired, and not what the oracle says."""
    UNCHECKED = "unchecked"
    """Rewired, and the oracle can't say what is right."""


@dataclass(frozen=True)
class Finding:
    """What is known of one model."""

    captured: bool
    nodes: int = 0
    report: CompileReport | None = None
    """The table, as rewired under `full` if that is possible, else as written."""
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """By connectivity."""
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    """By connectivity; "capture" if the model was not captured."""
    seconds: float = 0.0
    """Of capture and all rewirings."""


class Variants:
    """A backend that keeps one compiled copy of the graph for each connectivity; `current` chooses which one runs."""

    def __init__(self) -> None:
        self.current = "none"
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
            except FarSkipError as error:
                self.refusals[connectivity] = error
            else:
                self.compiled[connectivity] = compiled
        return lambda *args: self.compiled.get(self.current, module.forward)(*args)


PLAIN = "plain"
"""The captured graph as it is."""
FACTOR = 8.0
"""By how much more than the captured graph itself a rewired one may differ from eager mode."""


def check(model: nn.Module, ids: torch.Tensor) -> Finding:
    """See the module.

    Args:
        model: a causal language model, in eval mode.
        ids: token ids [B, T].
    """
    variants = Variants()
    started = time.perf_counter()
    with _quiet(), torch.no_grad():
        torch.compiler.reset()
        compiled = torch.compile(model, backend=variants, fullgraph=True)
        try:
            variants.current = PLAIN
            plainly = _logits(compiled(ids))
        except BackendCompilerFailed:
            raise  # a defect of this package, whose traceback is needed
        except TorchDynamoException as error:
            refusal = not_captured(error)
            return Finding(False, refusals={"capture": refusal}, seconds=time.perf_counter() - started)
        seconds = time.perf_counter() - started
        drift = (plainly - _logits(model(ids))).abs().max().item()
        verdicts: dict[str, Verdict] = {}
        refusals = {name: _refusal(error) for name, error in variants.refusals.items()}
        for name in CONNECTIVITIES:
            if name in refusals:
                verdicts[name] = Verdict.REFUSED
                continue
            variants.current = name
            logits = _logits(compiled(ids))
            if name == "none":
                verdicts[name] = Verdict.EQUAL if torch.equal(logits, plainly) else Verdict.WRONG
                continue
            try:
                expected = _logits(GenericFarSkipForm(model, name)(ids))  # type: ignore[arg-type]
            except NotImplementedError as error:
                verdicts[name] = Verdict.UNCHECKED
                refusals[name] = Refusal("NotImplementedError", f"the oracle can't tell: {error}")
                continue
            same = variants.reports[name].outcome is not Outcome.REWIRED
            apart = (logits - expected).abs().max().item()
            right = Verdict.SAME if same else Verdict.EQUAL if apart == 0.0 else Verdict.CLOSE
            verdicts[name] = right if apart <= FACTOR * drift else Verdict.WRONG
        torch.compiler.reset()
    report = variants.reports.get("full") or variants.reports.get("none")
    nodes = report.nodes if report is not None else 0
    return Finding(True, nodes, report, verdicts, refusals, seconds)


def _refusal(error: FarSkipError) -> Refusal:
    return Refusal(type(error).__name__, error.reason, str(error.where), error.way_out)


def _logits(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    logits = output["logits"] if "logits" in output else output[0]
    assert isinstance(logits, torch.Tensor)
    return logits


@contextmanager
def _quiet() -> Iterator[None]:
    """Findings say what Dynamo logs."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
