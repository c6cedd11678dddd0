# SPDX-License-Identifier: Apache-2.0
"""The fingerprint of a model: names and shapes of its parameters.

Contract: `ParameterFingerprint` keeps every name, so that a mismatch can name the first wrong parameter, and it keeps
apart the parameters that sub-blocks use: a model that lacks one of them is another model, while embedding, head or a
vision tower may well be missing from a graph. Types and values play no role: a checkpoint is trained on and cast. In
JSON the names are grouped (`patterns`), so that 61 layers of 256 experts take about as many lines as one layer has
parameters; a hash alone would be smaller still, and could only say "something is different". It is there besides, so
that a file that was edited or damaged is noticed.

Names are compared without the wrappers of PyTorch (`torch.compile`, DDP, FSDP, checkpoints) and without adapters
(`adapters`), and without the prefix that all of them share: a graph begins at whatever was compiled, which may be a
module around the model, or inside of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from farskip_compile._compat.modules import plain_name, unwrapped
from farskip_compile.base.json_files import JsonReader, encode
from farskip_compile.errors import ManifestError
from farskip_compile.manifest import patterns
from farskip_compile.manifest.adapters import names_without_adapters
from farskip_compile.manifest.patterns import ParameterShape

MOST_CANDIDATES = 16
MOST_PARAMETERS, MOST_CHARACTERS = 2**18, 2**25
"""Names, and characters in all of them together. A model of 61 layers of 384 experts, each matrix of each a parameter
with scales, has half as many."""
MOST_SIZE = 2**63 - 1
"""Largest size along a dimension."""


@dataclass(frozen=True)
class Listed:
    """A fingerprint in JSON: shapes by pattern of names, and what they must come to."""

    sha256: str
    parameters: int
    sub_blocks: Mapping[str, ParameterShape]
    others: Mapping[str, ParameterShape]


@dataclass(frozen=True)
class ParameterFingerprint:
    """Names and shapes of all parameters of a model."""

    used: Mapping[str, ParameterShape]
    """Those that sub-blocks of the residual stack use."""
    others: Mapping[str, ParameterShape]
    """All others."""

    @cached_property
    def shapes(self) -> dict[str, ParameterShape]:
        """Shapes of all parameters by name."""
        return {**self.used, **self.others}

    @cached_property
    def sha256(self) -> str:
        """Hash of all names and shapes, whatever their order."""
        digest, shapes = hashlib.sha256(), self.shapes
        for name in sorted(shapes):
            digest.update(f"{name} {list(shapes[name])} {name in self.used}\n".encode(errors="surrogatepass"))
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "sha256": self.sha256,
            "parameters": len(self.shapes),
            "sub_blocks": encode(patterns.grouped(self.used)),
            "others": encode(patterns.grouped(self.others)),
        }

    @classmethod
    def listed(cls, data: Listed, reader: JsonReader) -> ParameterFingerprint:
        """Return the fingerprint that `data` lists; `reader` refuses data that `to_json` would not give."""
        groups, size, characters = {"sub_blocks": data.sub_blocks, "others": data.others}, 0, 0
        for key, group in groups.items():
            for pattern, shape in group.items():
                place = f"fingerprint.{key}.{pattern}"
                try:
                    names, length = patterns.extent(pattern, MOST_PARAMETERS)
                except ValueError as error:
                    reader.refuse(place, f"under a key that is a pattern of names ({error})", shape)
                size, characters = size + names, characters + length
                if min(shape, default=0) < 0 or max(shape, default=0) > MOST_SIZE:
                    reader.refuse(place, "a shape: a list of whole numbers", shape)
        if size != data.parameters:  # before the names are made, which may be many
            reader.refuse("fingerprint.parameters", "the number of parameters listed", data.parameters)
        if size > MOST_PARAMETERS or characters > MOST_CHARACTERS:
            most = f"at most {MOST_PARAMETERS:,} parameters, with {MOST_CHARACTERS:,} characters in their names"
            reader.refuse("fingerprint", f"of {most}", size)
        named = (
            {n: shape for pattern, shape in g.items() for n in patterns.expanded(pattern)} for g in groups.values()
        )
        found = cls(*named)
        if len(found.shapes) != size:
            reader.refuse("fingerprint.sub_blocks", "a list without repetitions", list(data.sub_blocks))
        if found.sha256 != data.sha256:
            reader.refuse("fingerprint.sha256", f"{found.sha256[:12]}... for the parameters listed", data.sha256)
        return found


def parameters_of(model: nn.Module) -> dict[str, ParameterShape]:
    """Return names and shapes of all parameters of `model`, without adapters; a distributed tensor counts as a whole.

    A tied parameter is listed under each of its names: a graph shows it under any one of them.

    Raises:
        ManifestError: a parameter has no shape yet, or there are more than a manifest may hold.
    """
    shapes: dict[str, ParameterShape] = {}
    names = names_without_adapters(unwrapped(model))
    for name, parameter in unwrapped(model).named_parameters(remove_duplicate=False):
        outside = names[name]
        if outside is None:
            continue
        if nn.parameter.is_lazy(parameter):
            raise ManifestError(f"the parameter {name!r} has no shape yet", way_out="run the model once before")
        shapes[plain_name(outside)] = tuple(parameter.shape)
    if len(shapes) > MOST_PARAMETERS or sum(map(len, shapes)) > MOST_CHARACTERS:
        raise ManifestError(
            f"the model has {len(shapes):,} parameters, and a manifest holds {MOST_PARAMETERS:,}",
            way_out="stack the parameters of experts",
        )
    return shapes


@dataclass(frozen=True)
class Alignment:
    """How names of one side are translated into names of the other: one prefix for another."""

    drop: str = ""
    put: str = ""

    def __call__(self, name: str) -> str:
        """Return the name on the other side, if there is one."""
        return self.put + name.removeprefix(self.drop) if name.startswith(self.drop) else name


def align(names: Sequence[str], known: Collection[str]) -> Alignment:
    """Return the alignment under which most of `names` are among `known`; without any prefixes if that is as good.

    Algorithm: of the first, the middle and the last name, find what they have in common with known ones from the end
    on; what comes before that on both sides is a candidate. Count hits of each.
    """
    best = Alignment()
    most = sum(name in known for name in names)
    if most == len(names):
        return best
    for candidate in dict.fromkeys(_candidates({names[0], names[len(names) // 2], names[-1]}, known)):
        hits = sum(name.startswith(candidate.drop) and candidate(name) in known for name in names)
        if hits > most:
            best, most = candidate, hits
    return best


def _candidates(probes: Iterable[str], known: Collection[str]) -> Iterable[Alignment]:
    for probe in sorted(probes):
        parts = probe.split(".")
        for start in range(len(parts)):
            tail = ".".join(parts[start:])
            found = [name for name in known if name == tail or name.endswith(f".{tail}")]
            if found:
                drop = probe.removesuffix(tail)
                yield from (Alignment(drop, name.removesuffix(tail)) for name in found[:MOST_CANDIDATES])
                break
