# SPDX-License-Identifier: Apache-2.0
"""English text from what a machine has or can install, as documents.

In:    the name of a corpus, and a folder for what is downloaded.
Out:   its documents, in the order of the source; and what they are, with versions.
Never: the same document twice; text that is not English.

    dictionary   the entries of Webster's dictionary of 1913 with later additions: Debian's `dict-gcide`, 40 MB
    kernel       the files of the documentation of Linux, without its translations: Debian's `linux-doc`, 24 MB
    topics       the help texts of Python's language reference (`pydoc_data.topics`, 0.5 MB), nothing to download
"""

from __future__ import annotations

import gzip
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from distill_bench.rows import Corpus


class NoText(Exception):
    """No text is available; the message says why."""


def documents(corpus: Corpus, folder: Path) -> tuple[list[str], str]:
    """The documents, and what they are; `NoText` if a package can't be downloaded."""
    if corpus == "topics":
        found, about = _topics(), f"Python {platform.python_version()}'s help texts"
    elif corpus == "dictionary":
        package, about = _package("dict-gcide", folder)
        found = _entries(package / "usr/share/dictd/gcide.dict.dz")
    else:
        package, about = _package("linux-doc", folder)
        found = _files(package / "usr/share/doc")
    kept = list(dict.fromkeys(text for one in found if (text := one.strip())))
    if not kept:
        raise NoText(f"{about} holds no text: its files are elsewhere than in Debian 13")
    return kept, f"{about}, {len(kept)} documents"


def _entries(file: Path) -> Iterator[str]:
    """The head of an entry begins its line, what belongs to it is indented."""
    text = gzip.decompress(file.read_bytes()).decode("utf-8", errors="ignore")
    text = text[text.index("\nAb") :]  # after the preface
    text = re.sub(r"\n +\[[^\]\n]{1,40}\](?=\n)", "", text)  # who wrote an entry
    yield from re.split(r"\n\n(?=\S)", text)


def _files(folder: Path) -> Iterator[str]:
    for file in sorted(folder.rglob("*.rst*")):
        if "translations" not in file.parts and file.is_file():
            content = file.read_bytes()
            yield (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8", errors="ignore")


def _topics() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from (text for _, text in sorted(topics.items()))


def _package(name: str, folder: Path) -> tuple[Path, str]:
    """A Debian package, or the one that an empty package stands for, unpacked; its name and version."""
    target = folder / name
    about = target.with_suffix(".version")
    if not about.exists():  # it is written last
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise NoText(f"{name} is a Debian package, and this machine has no apt-get; --quick needs no download")
        with tempfile.TemporaryDirectory() as temporary:
            file = _download(name, Path(temporary))
            real, version, needs = (_said(file, field) for field in ("Package", "Version", "Depends"))
            if found := re.match(rf"{re.escape(name)}-[\d.]+", needs):  # the one of a version, such as linux-doc-6.12
                real, file = found[0], _download(found[0], Path(temporary))
                version = _said(file, "Version")
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            subprocess.run(["dpkg-deb", "-x", str(file), str(target)], check=True)
        about.write_text(f"{real} {version}")
    return target, about.read_text()


def _download(name: str, folder: Path) -> Path:
    done = subprocess.run(["apt-get", "download", name], cwd=folder, capture_output=True, text=True, check=False)
    found = sorted(folder.glob(f"{name}_*.deb"))
    if not found:
        raise NoText(f"apt-get download {name}: {done.stderr.strip().splitlines()[-1:]}; try `apt-get update`")
    return found[0]


def _said(file: Path, field: str) -> str:
    done = subprocess.run(["dpkg-deb", "-f", str(file), field], capture_output=True, text=True, check=True)
    return done.stdout.strip()
