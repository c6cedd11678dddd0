# SPDX-License-Identifier: Apache-2.0
"""What is published: the wheel holds the package and nothing else, the sdist what the tests need, and both read well.

pyproject.toml lists packages and data one by one, MANIFEST.in folders, and one can be forgotten. All is built as `make
dist` does it, the wheel from the unpacked sdist, but by the setuptools of this environment: nothing is downloaded.
"""

from __future__ import annotations

import email.message
import email.parser
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.structure.sources import PLACES, ROOT, is_checkout, own_files

pytestmark = pytest.mark.xdist_group("wheel")  # one worker, so that each is built once

BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY, TAG = PROJECT["urls"]["Repository"], f"v{PROJECT['version']}"
PAGES = f"{REPOSITORY}/blob/{TAG}/"
PICTURES = f"{REPOSITORY.replace('https://github.com/', 'https://raw.githubusercontent.com/')}/{TAG}/"
LEFTOVERS = ("out/a.html", ".venv/bin/python", "tests/__pycache__/a.pyc", "docs/.DS_Store", "farskip_compile/a.pyc")
"""What lies about where people work."""


def build(hook: str, source: Path, to: Path) -> Path:
    """What a hook of the build backend makes of a folder."""
    done = subprocess.run([sys.executable, "-c", BUILD, hook, str(to)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return to / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository, and what else may lie in one."""
    folder = tmp_path_factory.mktemp("tree")
    for name in own_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in LEFTOVERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_sdist", tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("build_wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(name).decode())


def test_every_file_is_in_the_wheel(wheel: Path) -> None:
    expected = set()
    for name, folder in PLACES.items():
        installed = Path("farskip_compile") if name == "farskip_compile" else Path("farskip_compile") / name
        files = (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        expected |= {str(installed / file.relative_to(folder)) for file in files}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert expected - found == set()
    assert found - expected == set()
    for needed in ("passes/residual/__init__.py", "models/__init__.py", "py.typed", "costs/profiles/h100.json"):
        assert f"farskip_compile/{needed}" in found


def test_the_wheel_has_the_license_and_the_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        beside = {Path(name).relative_to(Path(name).parts[0]).as_posix(): name for name in archive.namelist()}
        assert archive.read(beside["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
        entries = archive.read(beside["entry_points.txt"]).decode()
        assert archive.read(beside["top_level.txt"]).decode().split() == ["farskip_compile"]
    for group in (PROJECT["scripts"], *PROJECT["entry-points"].values()):
        for name, target in group.items():
            assert f"{name} = {target}\n" in entries
    said = metadata(wheel)
    assert (said["License-Expression"], said["Version"]) == ("Apache-2.0", PROJECT["version"])


@pytest.mark.skipif(not is_checkout(), reason="needs the repository's own list of files")
def test_the_sdist_is_the_repository(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    assert set(own_files()) - found == set()
    assert found.isdisjoint(LEFTOVERS)


def test_what_is_published_is_accepted(sdist: Path, wheel: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# The long description


class Links(HTMLParser):
    """The links and pictures of a page, in order; not those from a heading to itself."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src", "srcset") and not (value or "").startswith("#user-content"):
                self.found.append(value or "")


def rendered(text: str) -> str:
    """As PyPI shows it."""
    from readme_renderer import markdown

    html = markdown.render(text)
    assert html, "PyPI would show it as plain text"
    return html


def description(wheel: Path) -> str:
    said = metadata(wheel)
    assert said["Description-Content-Type"] == "text/markdown"
    return str(said.get_payload())


def test_each_relative_link_of_the_readme_holds_on_pypi(wheel: Path) -> None:
    ours = Links(rendered((ROOT / "README.md").read_text(encoding="utf-8"))).found
    theirs = Links(rendered(description(wheel))).found
    assert len(ours) == len(theirs)
    relative = 0
    for here, there in zip(ours, theirs, strict=True):
        assert there.startswith("https://"), there
        if here == there:
            continue
        relative += 1
        target = f"README.md{here}" if here.startswith("#") else here
        name = target.partition("#")[0]
        assert (ROOT / name).exists(), f"README.md links to {here}, which does not exist"
        assert there == (PICTURES if name.endswith((".png", ".svg")) else PAGES) + target
    assert relative > 0


MARKDOWN = """\
[a page](docs/a.md#part), [`code`](docs/b.md "title"), [here](#part), [away](https://x.y/docs/a.md), [mail](mailto:a@b)
![a picture](docs/c.png) and `not[a](link.md)` <img src="docs/d.svg">

    neither[is](this.md)

```python
nor[this](one.md)
```

[e]: docs/e.md
"""


def test_code_and_absolute_links_stay_as_they_are(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "tree")
    (tmp_path / "tree" / "README.md").write_text(MARKDOWN)
    expected = (
        MARKDOWN.replace("(docs/c.png)", f"({PICTURES}docs/c.png)")
        .replace('"docs/d.svg"', f'"{PICTURES}docs/d.svg"')
        .replace("(docs/", f"({PAGES}docs/")
        .replace("(#part)", f"({PAGES}README.md#part)")
        .replace("[e]: docs/", f"[e]: {PAGES}docs/")
    )
    for hook in ("prepare_metadata_for_build_editable", "prepare_metadata_for_build_wheel"):
        made = (build(hook, tmp_path / "tree", tmp_path) / "METADATA").read_text(encoding="utf-8")
        assert email.parser.Parser().parsestr(made).get_payload().strip() == expected.strip()
