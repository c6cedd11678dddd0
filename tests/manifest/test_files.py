# SPDX-License-Identifier: Apache-2.0
"""On disk: three kinds of places, nothing else touched, and nothing lost if a write fails."""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farskip_compile import Manifest, describe, load_manifest, save_manifest
from farskip_compile.errors import ManifestError
from farskip_compile.manifest.json_text import with_key
from tests.interrupted import interrupted
from tests.manifest.sample import IDS, small


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return describe(small(), IDS)


HF = """{
  "architectures": ["DeepseekV3ForCausalLM"],
  "rms_norm_eps": 1e-6,  "rope_theta": 1.0E4,
\t"zeta": [1, {"farskip": "not this one"}],
  "name": "caf\\u00e9 é",
  "alpha": null
}
"""


def test_file(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    assert save_manifest(manifest, path) == path
    assert load_manifest(path) == manifest
    assert load_manifest(str(path)).origin == str(path)
    assert all(len(line) <= 160 for line in path.read_text().splitlines())
    assert len(path.read_text().splitlines()) < 60
    save_manifest(manifest, path)  # again, over itself
    assert load_manifest(path) == manifest
    assert os.listdir(tmp_path) == ["mine.json"]


def test_folder_beside_the_weights(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(HF)
    assert save_manifest(manifest, tmp_path) == tmp_path / "farskip.json"
    assert load_manifest(tmp_path) == manifest
    assert (tmp_path / "config.json").read_text() == HF


@pytest.mark.parametrize("text", [HF, "{}", ' {"a": 1}\n', json.dumps(json.loads(HF)), HF.replace("\n", "\r\n")])
def test_config_json_keeps_everything_else(manifest: Manifest, tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode())
    assert save_manifest(manifest, path) == path
    written = path.read_bytes().decode()
    data = json.loads(written)
    assert list(data) == [*json.loads(text), "farskip"]
    assert {key: value for key, value in data.items() if key != "farskip"} == json.loads(text)
    start = written.index('"farskip": {\n')
    assert written[:start].rstrip().removesuffix(",") == text.rstrip().removesuffix("}").rstrip()
    assert load_manifest(path) == load_manifest(tmp_path) == manifest
    assert load_manifest(path).origin == str(path)
    # and a second time, in place
    (tmp_path / "config.json").write_bytes(with_key(written, "last", 1).encode())
    save_manifest(Manifest("mlp"), path)
    assert load_manifest(path) == Manifest("mlp")
    assert list(json.loads(path.read_bytes())) == [*json.loads(text), "farskip", "last"]


def test_a_folder_prefers_the_file_of_its_own(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(HF)
    save_manifest(Manifest("mlp"), tmp_path / "config.json")
    assert load_manifest(tmp_path).connectivity == "mlp"
    save_manifest(manifest, tmp_path)
    assert load_manifest(tmp_path).connectivity == "full"


def test_amds_keys_are_read_and_never_written_over(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"farskip": true, "num_hidden_layers": 5, "farskip_start_idx": 3}')
    assert load_manifest(tmp_path) == Manifest("full", (3, 4))
    before = path.read_text()
    with pytest.raises(ManifestError, match="AMD's key 'farskip'") as caught:
        save_manifest(manifest, path)
    assert str(tmp_path) in caught.value.way_out
    assert path.read_text() == before
    save_manifest(manifest, tmp_path)
    assert load_manifest(tmp_path) == manifest


# What is not there, and what is not a manifest


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"neither farskip\.json nor config\.json") as caught:
        load_manifest(tmp_path)
    assert "save_manifest" in caught.value.way_out
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ManifestError, match="an object under 'farskip', nor AMD's keys"):
        load_manifest(tmp_path)
    with pytest.raises(ManifestError, match=r"can't read .*missing\.json: No such file"):
        load_manifest(tmp_path / "missing.json")
    with pytest.raises(ManifestError, match="can't read"):
        save_manifest(Manifest("full"), tmp_path / "elsewhere" / "config.json")


@pytest.mark.parametrize(
    ("content", "says"), [(b"{", "is not JSON"), (b"[1]", "holds no JSON object"), (b"\xff\xfe{}", "not text in UTF-8")]
)
def test_damaged_files(tmp_path: Path, content: bytes, says: str) -> None:
    for name in ("farskip.json", "config.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ManifestError, match=says) as caught:
            load_manifest(tmp_path)
        assert name in caught.value.reason
        with pytest.raises(ManifestError, match=says):
            save_manifest(Manifest("full"), tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
        (tmp_path / name).unlink()


def test_another_json_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ManifestError, match=r"tokenizer\.json exists and is not a manifest"):
        save_manifest(Manifest("full"), tmp_path / "tokenizer.json")
    assert (tmp_path / "tokenizer.json").read_text() == '{"model": {}}'


# Atomic


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("name", ["farskip.json", "config.json"])
def test_a_failing_write_leaves_the_old_file(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, failing: str
) -> None:
    if name == "config.json":
        (tmp_path / name).write_text(HF)
    save_manifest(Manifest("mlp"), tmp_path / name)
    before = (tmp_path / name).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(ManifestError, match=r"can't write .*: No space left on device") as caught:
            save_manifest(manifest, tmp_path / name)
    assert "unchanged" in caught.value.way_out
    assert (tmp_path / name).read_bytes() == before
    assert os.listdir(tmp_path) == [name]


def test_an_interrupted_write_leaves_nothing_behind(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_manifest(manifest, tmp_path)
    assert not os.listdir(tmp_path)


def test_the_file_is_whole_at_every_moment(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the replacement the old one is there, and what takes its place is complete."""
    save_manifest(Manifest("mlp"), tmp_path)
    seen = []
    replace = os.replace

    def look(source: Path, target: Path) -> None:
        seen.append((load_manifest(tmp_path), source.parent, Manifest.from_json(json.loads(source.read_text()))))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    save_manifest(manifest, tmp_path)
    assert seen == [(Manifest("mlp"), tmp_path, manifest)]


def test_permissions(manifest: Manifest, tmp_path: Path) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    new = save_manifest(manifest, tmp_path)
    (tmp_path / "plain").touch()
    assert mode(new) == mode(tmp_path / "plain")
    new.chmod(0o640)
    save_manifest(manifest, tmp_path)
    assert mode(new) == 0o640


@pytest.mark.parametrize("text", ["", "[]", '{"a" 1}', '{"a": 1', '{"a": }', "{1: 2}", '{"a": 1 "b": 2}'])
def test_text_that_is_no_object_is_not_edited(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        with_key(text, "farskip", 1)


def test_a_checkpoint_is_guarded_before_the_manifest_is_beside_it(manifest: Manifest, tmp_path: Path) -> None:
    """A process that ends between two files of a manifest must not leave weights that load as the original model."""

    def fresh() -> Iterator[Path]:
        for number in itertools.count():
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / "config.json").write_text('{"model_type": "mixtral"}')
            yield tmp_path / str(number)

    for _, folder in interrupted(lambda: save_manifest(manifest, "."), fresh(), full=False):
        guarded = json.loads((folder / "config.json").read_text())["model_type"] == "farskip_mixtral"
        assert guarded or not (folder / "farskip.json").exists()
        assert not guarded or load_manifest(folder) == manifest
