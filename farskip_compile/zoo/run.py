"""Check families of the zoo one after the other: from a `Family` to an `Entry` of the table.

Contract: families come in, entries go out, in the same order; each model is built tiny and random from its own
configuration class. An entry holds names, numbers and reasons, and becomes JSON and back without loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import torch

from farskip_compile.explain import Refusal
from farskip_compile.explain.layout import short_place
from farskip_compile.passes.residual.table import Kind
from farskip_compile.report.compile import CompileReport
from farskip_compile.zoo.check import Finding, Verdict, check
from farskip_compile.zoo.families import Family
from farskip_compile.zoo.tiny import CannotBuild, build_tiny

REWIRED = ("full", "attention", "mlp")
IDS_SHAPE = (2, 10)
VOCABULARY = 128


@dataclass(frozen=True)
class Entry:
    """One line of the zoo's table."""

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
    """Of the model as written."""
    verdicts: dict[str, str] = field(default_factory=dict)
    """By connectivity."""
    reason: str = ""
    where: str = ""
    """The line that is in the way: of the model's source where the graph knows it."""
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """One word for the line."""
        found = {self.verdicts.get(name, "") for name in REWIRED}
        if not self.built:
            return "not built"
        if not self.captured:
            return "not captured"
        if Verdict.WRONG in {*found, self.verdicts.get("none", "")}:
            return "WRONG"
        if Verdict.UNCHECKED in found:
            return "unchecked"
        if not found.isdisjoint({Verdict.EQUAL, Verdict.CLOSE}):
            return "rewired" if Verdict.REFUSED not in found else "rewired in part"
        return "refused" if Verdict.REFUSED in found else "recognised"

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**asdict(self), "status": self.status}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Entry:
        """What `to_json` gave."""
        fields = {key: value for key, value in data.items() if key != "status"}
        return Entry(**{**fields, "prepared": tuple(fields.get("prepared", ()))})


def run(families: Sequence[Family]) -> Iterator[Entry]:
    """Check `families`."""
    for family in families:
        yield check_family(family)


def check_family(family: Family) -> Entry:
    """Build, capture, rewire and compare one family."""
    if family.reason is not None:
        return Entry(family.model_type, family.class_name, built=False, reason=family.reason)
    try:
        model = build_tiny(family)
    except CannotBuild as error:
        return Entry(
            family.model_type,
            family.class_name,
            built=False,
            reason=error.reason,
            where=short_place(error.where.source or ""),
        )
    ids = torch.randint(0, VOCABULARY, IDS_SHAPE, generator=torch.Generator().manual_seed(0))
    finding = check(model, ids)
    prepared: tuple[str, ...] = ()
    if not finding.captured:
        from farskip_compile.prepare import prepare

        changes = prepare(model).changes
        prepared = tuple(change.what for change in changes)
        finding = check(model, ids) if changes else finding
    return entry(family, finding, prepared)


def entry(family: Family, finding: Finding, prepared: tuple[str, ...] = ()) -> Entry:
    """The line of the table for what was found."""
    order = ("capture", "full", "attention", "mlp", "none")
    refusal = next((finding.refusals[name] for name in order if name in finding.refusals), Refusal("", ""))
    return Entry(
        family=family.model_type,
        class_name=family.class_name,
        captured=finding.captured,
        prepared=prepared,
        nodes=finding.nodes,
        layers=layers_of(finding.report) if finding.report is not None else "",
        wiring=finding.report.wiring_before if finding.report is not None else "",
        verdicts={name: str(verdict) for name, verdict in finding.verdicts.items()},
        reason=f"{refusal.error}: {refusal.reason}" if refusal.error else "",
        where=short_place(refusal.where),
        seconds=round(finding.seconds, 2),
    )


def layers_of(report: CompileReport) -> str:
    """What each layer adds, equal neighbours taken together."""
    letters = {Kind.ATTENTION: "a", Kind.MIXER: "x", Kind.DENSE: "m", Kind.SHARED: "s", Kind.ROUTED: "r"}
    layers = [
        " ".join(letters[report.table.terms[term].kind] for row in rows for term in row.terms)
        for _, rows in groupby(report.rows, key=lambda row: row.layer)
    ]
    runs = [(layer, len(list(same))) for layer, same in groupby(layers)]
    return ", ".join(layer if count == 1 else f"{count} ({layer})" for layer, count in runs)
