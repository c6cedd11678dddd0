"""What a manifest says: the connectivity that a checkpoint was trained in, and the model that this means.

Contract: an immutable record, and its JSON form. `from_json` accepts what `to_json` gave and nothing else: an unknown
schema, a key too many or too few or a value of the wrong type is a `ManifestError` that names the key and the file.
`terms` are the summands of the residual stream; what a sub-block reads are intervals of them, in JSON as text:
`e..a1, s1` is everything from `e` to `a1`, and `s1`.

A manifest without rows and fingerprint says connectivity and layers only (AMD's keys say no more than that).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

from farskip_compile.manifest.fields import Fields, is_count, is_list_of_texts
from farskip_compile.manifest.fingerprint import Fingerprint
from farskip_compile.passes.residual.kinds import Kind
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire.request import Connectivity, LayerRange, Named

SCHEMA = 1
ROW_KINDS = (Kind.ATTENTION, Kind.MIXER, Kind.DENSE, Kind.ROUTED)


@dataclass(frozen=True)
class ManifestRow:
    """One sub-block of the rewired model."""

    name: str
    kind: Kind
    layer: int
    terms: tuple[str, ...]
    """What it adds to the stream."""
    reads: TermSet
    """What it reads, as indices of `Manifest.terms`."""
    left_out: TermSet
    """What it reads in the model as written, and no longer."""

    @property
    def reads_before(self) -> TermSet:
        """What it reads in the model as written."""
        return self.reads | self.left_out


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's FarSkip form."""

    connectivity: Connectivity
    """As in `FarSkipConfig`."""
    layers: LayerRange = None
    """As in `FarSkipConfig`."""
    terms: tuple[str, ...] = ()
    """Names of the summands of the residual stream, in their order."""
    rows: tuple[ManifestRow, ...] = ()
    """The sub-blocks, in their order."""
    fingerprint: Fingerprint | None = None
    """Names and shapes of the model's parameters."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """What it was made with: package -> version."""
    schema: int = SCHEMA
    origin: str = field(default="", compare=False, repr=False)
    """Where it was read from, for messages."""

    def __str__(self) -> str:
        return f"the manifest {self.origin}" if self.origin else "the manifest"

    @cached_property
    def digest(self) -> str:
        """Hash of all that it says about the model; versions and origin aside."""
        content = {key: value for key, value in self.to_json().items() if key != "versions"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def names(self, terms: TermSet) -> str:
        """A set of terms as text."""
        return interval_text(self.terms, terms)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "schema": self.schema,
            "connectivity": (
                str(self.connectivity)
                if isinstance(self.connectivity, str)
                else {row: list(terms) for row, terms in self.connectivity.items()}
            ),
            "layers": list(self.layers) if self.layers is not None else None,
            "terms": list(self.terms),
            "sub_blocks": [  # a list: transformers sorts the keys of objects when it saves a configuration
                {
                    "name": row.name,
                    "kind": str(row.kind),
                    "layer": row.layer,
                    "adds": list(row.terms),
                    "reads": self.names(row.reads),
                    "left_out": self.names(row.left_out),
                }
                for row in self.rows
            ],
            "fingerprint": self.fingerprint.to_json() if self.fingerprint is not None else None,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, data: object, origin: str = "the manifest") -> Manifest:
        """What `to_json` gave.

        Args:
            data: parsed JSON.
            origin: where it is from, for messages.

        Raises:
            ManifestError: it is anything else; names the key.
        """
        fields = Fields(data, origin)
        schema = fields.number("schema")
        if schema != SCHEMA:
            raise fields.wrong("schema", f"{SCHEMA}, which is what this version of farskip-compile reads")
        layers = _layers(fields)
        connectivity = _connectivity(fields)
        if layers is not None and not isinstance(connectivity, str):
            raise fields.wrong("layers", "null beside a table, which says already which layers change")
        terms = fields.texts("terms")
        if len(set(terms)) != len(terms):
            raise fields.wrong("terms", "a list without repetitions")
        index = {name: position for position, name in enumerate(terms)}
        rows = tuple(_row(row, index) for row in fields.inners("sub_blocks"))
        if len({row.name for row in rows}) != len(rows):
            raise fields.wrong("sub_blocks", "a list without repetitions")
        versions = fields.inner("versions")
        found = cls(
            connectivity,
            layers,
            terms,
            rows,
            Fingerprint.from_json(fields.inner("fingerprint")) if fields.get("fingerprint") is not None else None,
            {package: versions.text(package) for package in versions.data},
            origin=origin,
        )
        fields.end()
        return found


def _layers(fields: Fields) -> LayerRange:
    value = fields.get("layers")
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(is_count, value)) or value[0] > value[1]:
        raise fields.wrong("layers", "null, or the first and the last layer")
    return value[0], value[1]


def _connectivity(fields: Fields) -> Connectivity:
    value = fields.get("connectivity")
    if isinstance(value, Mapping):
        if not all(map(is_list_of_texts, value.values())):
            raise fields.wrong("connectivity", "a table: sub-block -> list of terms that it leaves out")
        return {str(row): tuple(terms) for row, terms in value.items()}
    if value not in get_args(Named):
        raise fields.wrong("connectivity", f"one of {', '.join(get_args(Named))}, or a table")
    named: Named = value
    return named


def _row(fields: Fields, index: Mapping[str, int]) -> ManifestRow:
    kind = fields.text("kind")
    if kind not in ROW_KINDS:
        raise fields.wrong("kind", f"one of {', '.join(ROW_KINDS)}")
    adds = fields.texts("adds")
    if not adds or any(term not in index for term in adds):
        raise fields.wrong("adds", "a list of names from 'terms'")
    reads, left_out = _terms(fields, "reads", index), _terms(fields, "left_out", index)
    if reads & left_out:
        raise fields.wrong("left_out", "something that it does not read")
    found = ManifestRow(fields.text("name"), Kind(kind), fields.number("layer"), adds, reads, left_out)
    fields.end()
    return found


def _terms(fields: Fields, key: str, index: Mapping[str, int]) -> TermSet:
    """The set that `interval_text` wrote."""
    intervals = []
    for part in filter(None, fields.text(key).split(", ")):
        low, _, high = part.partition("..")
        if low not in index or (high or low) not in index or index[low] > index[high or low]:
            raise fields.wrong(key, f"names from 'terms', such as 'e..a1, s1', where {part!r} stands")
        intervals.append((index[low], index[high or low] + 1))
    return TermSet.from_intervals(intervals)


def interval_text(terms: Sequence[str], chosen: TermSet) -> str:
    """A set of terms in a few characters, from which it can be read back: `e..a1, s1`."""
    return ", ".join(
        terms[low] if high == low + 1 else f"{terms[low]}..{terms[high - 1]}" for low, high in chosen.intervals
    )
