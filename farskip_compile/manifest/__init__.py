# SPDX-License-Identifier: Apache-2.0
"""Manifests: which FarSkip form a checkpoint was trained in, written beside it, and held against what is compiled.

FarSkip keeps names and shapes of all parameters, so that the weights of a FarSkip model load into the plain model
silently, and compute something else. A manifest says which form they are for: JSON beside the weights.

    record             what it says: connectivity, layers, sub-blocks, fingerprint, versions
    fingerprint        names and shapes of the parameters; `patterns` writes them in a few lines
    graph_parameters   which parameters a Dynamo graph shows
    files              to and from disk: a file of its own, a checkpoint folder, a Hugging Face `config.json`
    found              of a checkpoint or a model in memory, wherever it is kept
    guarded            a `config.json` that only this package loads; `guarded_adapter`, the same of an adapter
    lost               weights that a checkpoint did not have
    amd_keys           AMD's keys in a `config.json`, which say connectivity and layers only
    check              a graph against a manifest

`farskip_compile.describe` makes one: from a model, by capturing it once, or from the report of a compile.
"""

from farskip_compile.manifest.amd_keys import from_amd_keys
from farskip_compile.manifest.files import load_manifest, read_manifest, write_manifest
from farskip_compile.manifest.fingerprint import ParameterFingerprint
from farskip_compile.manifest.record import Manifest

__all__ = [
    "Manifest",
    "ParameterFingerprint",
    "from_amd_keys",
    "load_manifest",
    "read_manifest",
    "write_manifest",
]
