# SPDX-License-Identifier: Apache-2.0
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

from farskip_compile.base.choices import ConnectivityName
from farskip_compile.base.json_files import JsonReader, encode
from farskip_compile.errors import ManifestError
from farskip_compile.manifest.fingerprint import Listed, ParameterFingerprint
from farskip_compile.passes.graph.declared import Declared
from farskip_compile.passes.residual.table import BadCell, Table
from farskip_compile.passes.rewire.request import Connectivity, LayerRange

SCHEMA = 1
MOST_LAYERS = 10_000
"""Largest number of layers in a manifest without sub-blocks."""
WAY_OUT = "write the manifest anew with farskip_compile.save_manifest; it is not meant to be edited"


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's FarSkip form."""

    connectivity: Connectivity
    """As in `FarSkipConfig`."""
    layers: LayerRange = None
    """As in `FarSkipConfig`."""
    table: Table = field(default_factory=Table)
    """What each sub-block of the rewired model reads, and what it no longer reads."""
    fingerprint: ParameterFingerprint | None = None
    """Names and shapes of the model's parameters."""
    declared: tuple[Declared, ...] = ()
    """What the table rests on beside the model: declared facts, which compiles with this manifest take over."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """What it was made with: package -> version."""
    healing: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """How the weights came to be (`fold`, `self_distill`): plain data for readers, by which nothing is decided."""
    schema: int = SCHEMA
    """Version of the format."""
    origin: str = field(default="", compare=False, repr=False)
    """Where it was read from, for messages."""
    fused: bool = field(default=False, compare=False, repr=False)
    """Whether it is compared with a model that holds several parameters in one, as engines that serve do: then only
    parameters that go by the same name in both are. Not a part of the JSON."""
    rows_multiple: int = field(default=1, compare=False, repr=False)
    """The multiple to which that model pads the rows of its tables of tokens. Not a part of the JSON."""

    def __str__(self) -> str:
        return f"the manifest {self.origin}" if self.origin else "the manifest"

    @property
    def changes_function(self) -> bool:
        """Return whether the rewired model computes another function. AMD's keys are taken at their word."""
        if self.table.rows:
            return any(row.left_out for row in self.table.rows)
        return self.connectivity != "none"

    @cached_property
    def digest(self) -> str:
        """Hash of all that it says about the model; versions, healing and origin aside."""
        content = {key: value for key, value in self.to_json().items() if key not in ("versions", "healing")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "schema": self.schema,
            "connectivity": encode(self.connectivity),
            "layers": encode(self.layers),
            **self.table.to_json(),
            "fingerprint": self.fingerprint.to_json() if self.fingerprint is not None else None,
            **({"declared": {fact.name: fact.to_json() for fact in self.declared}} if self.declared else {}),
            "versions": dict(self.versions),
            **({"healing": dict(self.healing)} if self.healing else {}),
        }

    @classmethod
    def from_json(cls, data: object, origin: str = "the manifest") -> Manifest:
        """Return the manifest that `to_json` wrote as `data`.

        Args:
            data: parsed JSON.
            origin: where it is from, for messages.

        Raises:
            ManifestError: `data` is anything else; names the key.
        """
        reader = JsonReader(origin, ManifestError, always=WAY_OUT, accepts_null=True)
        found = reader.decode(_Json, reader.version(data, (SCHEMA,)))
        connectivity: Connectivity = found.connectivity
        if isinstance(connectivity, Mapping):
            connectivity = reader.decode(dict[str, tuple[str, ...]], connectivity, "connectivity")
        elif connectivity not in get_args(ConnectivityName):
            reader.refuse("connectivity", f"one of {', '.join(get_args(ConnectivityName))}, or a table", connectivity)
        for number, row in enumerate(found.sub_blocks):
            if row.layer > number:  # a layer begins with a sub-block; drawings have a line for each
                reader.refuse(f"sub_blocks.{number}.layer", "a whole number, not above that of sub-blocks", row.layer)
        layers = found.layers
        if layers is not None and (len(layers) != 2 or not 0 <= layers[0] <= layers[1]):
            reader.refuse("layers", "null, or the first and the last layer", layers)
        if layers is not None and not isinstance(connectivity, str):
            reader.refuse("layers", "null beside a table, which says already which layers change", layers)
        try:
            table = Table.from_json(found.terms, map(vars, found.sub_blocks))
        except BadCell as error:
            reader.refuse(error.key, error.wanted, error.found)
        fingerprint = ParameterFingerprint.listed(found.fingerprint, reader) if found.fingerprint is not None else None
        pair = (layers[0], layers[1]) if layers is not None else None
        if pair is not None and pair[1] >= (table.num_layers or MOST_LAYERS):
            reader.refuse("layers", f"layers of the model, below {table.num_layers or MOST_LAYERS}", layers)
        declared = []
        for name, kinds in found.declared.items():
            try:
                declared.append(Declared.from_json(name, kinds))
            except (ValueError, TypeError) as error:
                reader.refuse("declared", f"what operators and modules are ({error})", kinds)
        return cls(
            connectivity, pair, table, fingerprint, tuple(declared), found.versions, found.healing, origin=origin
        )


@dataclass(frozen=True)
class _Row:
    """A sub-block in JSON."""

    name: str
    kind: str
    layer: int
    adds: tuple[str, ...]
    reads: str
    left_out: str


@dataclass(frozen=True)
class _Json:
    """A manifest in JSON, without its schema."""

    connectivity: Any
    layers: tuple[int, ...] | None
    terms: tuple[str, ...]
    sub_blocks: tuple[_Row, ...]
    fingerprint: Listed | None
    versions: Mapping[str, str]
    declared: Mapping[str, Any] = field(default_factory=dict)
    healing: Mapping[str, Any] = field(default_factory=dict)
