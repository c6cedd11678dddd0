"""What a manifest says: the connectivity that a checkpoint was trained in, and the model that this means.

Contract: an immutable record, and its JSON form. `from_json` accepts what `to_json` gave and nothing else: an unknown
schema, a key too many or too few or a value of the wrong type is a `ManifestError` that names the key and the file.
In JSON the table of the rewired model lists `terms`, the summands of the residual stream, and what each of its
`sub_blocks` reads, as text: `e..a1, s1` is everything from `e` to `a1`, and `s1`.

A manifest without table and fingerprint gives connectivity and layers only (AMD's keys hold no more than that).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

from farskip_compile.manifest.fields import Fields, is_count, is_list_of_texts
from farskip_compile.manifest.fingerprint import Fingerprint
from farskip_compile.passes.residual.table import BadCell, Table
from farskip_compile.passes.rewire.request import Connectivity, LayerRange, Named

SCHEMA = 1


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's FarSkip form."""

    connectivity: Connectivity
    """As in `FarSkipConfig`."""
    layers: LayerRange = None
    """As in `FarSkipConfig`."""
    table: Table = field(default_factory=Table)
    """What each sub-block of the rewired model reads, and what it no longer reads."""
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
            **self.table.to_json(),
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
        table = _table(fields)
        versions = fields.inner("versions")
        found = cls(
            connectivity,
            layers,
            table,
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


def _table(fields: Fields) -> Table:
    rows = []
    for row in fields.inners("sub_blocks"):
        text = {key: row.text(key) for key in ("name", "kind", "reads", "left_out")}
        rows.append({**text, "layer": row.number("layer"), "adds": row.texts("adds")})
        row.end()
    try:
        return Table.from_json(fields.texts("terms"), rows)
    except BadCell as error:
        raise fields.wrong(error.key, error.wanted, error.found) from error
