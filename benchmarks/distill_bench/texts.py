"""English text for small models: one corpus to train on, another domain to be held against.

In:    a folder for the files, and whether the run is a quick one.
Out:   `Corpus`: three text files (training, held out of the same source, another domain), and where they come from.
Never: the same line in training and held out: the source is cut once, at 97 %.

    whole   Webster's dictionary of 1913 with later additions (Debian's `dict-gcide`, 40 MB), held against `fortunes`
    quick   the help texts of Python's language reference (`pydoc_data.topics`, 0.5 MB), held against its licences and
            docstrings: nothing to download
"""

from __future__ import annotations

import gzip
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT = 0.03
MOST_MEGABYTES = 24
"""Of the dictionary: more than any run here goes through."""


NO_PROSE = ("ascii-art", "perl", "translate-me")
"""Of the quotations."""


@dataclass(frozen=True)
class Corpus:
    """Text files in UTF-8."""

    train: Path
    held_out: Path
    other_domain: Path
    source: str


class NoText(Exception):
    """There is no text, and why."""


def corpus(folder: Path, *, quick: bool) -> Corpus:
    """The text, made once and then taken from `folder`.

    Raises:
        NoText: a package can't be downloaded.
    """
    folder = folder / ("quick" if quick else "whole")
    source = "pydoc_data.topics; docstrings" if quick else "dict-gcide; fortunes"
    found = Corpus(folder / "train.txt", folder / "held_out.txt", folder / "other_domain.txt", source)
    if not found.other_domain.exists():  # it is written last
        folder.mkdir(parents=True, exist_ok=True)
        text = _topics() if quick else _dictionary(folder)
        cut = text.rindex("\n\n", 0, int(len(text) * (1 - HELD_OUT)))
        found.train.write_text(text[:cut])
        found.held_out.write_text(text[cut:].strip() + "\n")
        found.other_domain.write_text(_docstrings() if quick else _quotations(folder))
    return found


def _dictionary(folder: Path) -> str:
    file = _package("dict-gcide", folder) / "usr/share/dictd/gcide.dict.dz"
    text = gzip.decompress(file.read_bytes()).decode("utf-8", errors="ignore")
    text = text[text.index("\nAb") :]  # behind the preface
    text = re.sub(r"\n +\[[^\]\n]{1,40}\](?=\n)", "", text)  # who wrote an entry
    return text[-MOST_MEGABYTES * 1_000_000 :]


def _quotations(folder: Path) -> str:
    folder = _package("fortunes", folder) / "usr/share/games/fortunes"
    files = [file for file in sorted(folder.iterdir()) if not file.suffix and file.name not in NO_PROSE]
    return "\n\n".join(part.strip() for file in files for part in file.read_text().split("\n%\n"))


def _topics() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(text.strip() for _, text in sorted(topics.items()))


def _docstrings() -> str:
    return "\n\n".join(_of_modules())[:200_000]


def _of_modules() -> Iterator[str]:
    for name in ("email", "logging", "unittest", "json", "http", "asyncio"):
        package = __import__(name)
        for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda one: one.name):
            module = sys.modules.get(f"{name}.{found.name}")
            if module is not None and (text := inspect.getdoc(module)):
                yield text
            for _, value in sorted(vars(module or package).items()):
                if inspect.isclass(value) and value.__module__.startswith(name) and (text := inspect.getdoc(value)):
                    yield text


def _package(name: str, folder: Path) -> Path:
    """A Debian package, unpacked."""
    target = folder / name
    if target.exists():
        return target
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NoText(f"{name} is a package of Debian, and there is no apt-get here; --quick needs no download")
    with tempfile.TemporaryDirectory() as temporary:
        done = subprocess.run(["apt-get", "download", name], cwd=temporary, capture_output=True, text=True, check=False)
        files = sorted(Path(temporary).glob("*.deb"))
        if not files:
            raise NoText(f"apt-get download {name}: {done.stderr.strip().splitlines()[-1:]}; try `apt-get update`")
        unpacked = Path(temporary) / "unpacked"
        subprocess.run(["dpkg-deb", "-x", str(files[0]), str(unpacked)], check=True)
        shutil.copytree(unpacked, target)
    return target
