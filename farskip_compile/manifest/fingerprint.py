"""The fingerprint of a model: names and shapes of its parameters.

Contract: `Fingerprint` keeps every name, so that a mismatch can name the first wrong parameter, and it keeps apart the
parameters that sub-blocks use: a model that lacks one of them is another model, while embedding, head or a vision
tower may well be missing from a graph. Types and values play no role: a checkpoint is trained on and cast. In JSON the
names are grouped (`patterns`), so that 61 layers of 256 experts take about as many lines as one layer has parameters;
a hash alone would be smaller still, and could only say "something is different". It is there besides, so that a file
that was edited or damaged is noticed.

Names are compared without the wrappers of PyTorch (`torch.compile`, DDP, FSDP, checkpoints), and without what stands in
front of all of them: a graph begins at whatever was compiled, which may be a module around the model, or inside of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from farskip_compile._compat.parameters import plain_name, unwrapped
from farskip_compile.errors import ManifestError
from farskip_compile.manifest import patterns
from farskip_compile.manifest.fields import Fields, is_count
from farskip_compile.manifest.patterns import Shape

MOST_CANDIDATES = 16


@dataclass(frozen=True)
class Fingerprint:
    """Names and shapes of all parameters of a model."""

    used: Mapping[str, Shape]
    """Those that sub-blocks of the residual stack use."""
    others: Mapping[str, Shape]
    """All others."""

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """All of them."""
        return {**self.used, **self.others}

    @cached_property
    def sha256(self) -> str:
        """Hash of all names and shapes, whatever their order."""
        lines = (f"{name} {list(shape)} {name in self.used}\n" for name, shape in sorted(self.shapes.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "sha256": self.sha256,
            "parameters": len(self.shapes),
            "sub_blocks": {key: list(shape) for key, shape in patterns.grouped(self.used).items()},
            "others": {key: list(shape) for key, shape in patterns.grouped(self.others).items()},
        }

    @classmethod
    def from_json(cls, fields: Fields) -> Fingerprint:
        """What `to_json` gave.

        Raises:
            ManifestError: anything else.
        """
        count, sha256 = fields.number("parameters"), fields.text("sha256")
        groups = [fields.inner(key) for key in ("sub_blocks", "others")]
        fields.end()
        if sum(_size(group, pattern) for group in groups for pattern in group.data) != count:
            raise fields.wrong("parameters", "the number of parameters listed")
        found = cls(*(_read(group) for group in groups))
        if len(found.shapes) != count:
            raise fields.wrong("sub_blocks", "a list without repetitions")
        if found.sha256 != sha256:
            raise fields.wrong("sha256", f"{found.sha256[:12]}... for the parameters listed")
        return found


def _size(group: Fields, pattern: str) -> int:
    try:
        return patterns.size(pattern)
    except ValueError as error:
        raise group.wrong(pattern, f"under a key that is a pattern of names ({error})") from None


def _read(group: Fields) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for pattern in group.data:
        shape = group.get(pattern)
        if not isinstance(shape, list | tuple) or not all(map(is_count, shape)):
            raise group.wrong(pattern, "a shape: a list of whole numbers")
        shapes.update(dict.fromkeys(patterns.expanded(pattern), tuple(shape)))
    return shapes


def parameters_of(model: nn.Module) -> dict[str, Shape]:
    """Names and shapes of all parameters of `model`; of a distributed tensor the shape of the whole.

    A tied parameter is listed under each of its names: a graph shows it under any one of them.

    Raises:
        ManifestError: a parameter has no shape yet.
    """
    shapes: dict[str, Shape] = {}
    for name, parameter in unwrapped(model).named_parameters(remove_duplicate=False):
        if nn.parameter.is_lazy(parameter):
            raise ManifestError(f"the parameter {name!r} has no shape yet", way_out="run the model once before")
        shapes[plain_name(name)] = tuple(parameter.shape)
    return shapes


@dataclass(frozen=True)
class Alignment:
    """How names of one side are translated into names of the other: one prefix for another."""

    drop: str = ""
    put: str = ""

    def __call__(self, name: str) -> str:
        """The name on the other side, if there is one."""
        return self.put + name.removeprefix(self.drop) if name.startswith(self.drop) else name


def align(names: Sequence[str], known: Collection[str]) -> Alignment:
    """The alignment under which most of `names` are among `known`; without any prefixes if that is as good.

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
