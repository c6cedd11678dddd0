# SPDX-License-Identifier: Apache-2.0
"""The one thing that pyproject.toml can't say: the long description, which is README.md with links that hold on PyPI.

In:    README.md, whose links are relative to the repository; version and repository from pyproject.toml.
Out:   the same text as metadata of sdists, wheels and editable installs; a relative link points to the file at the tag
       of this version, a picture to its bytes there.
Never: writes a file, or says anything else about the package.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY, TAG = PROJECT["urls"]["Repository"], f"v{PROJECT['version']}"
PAGES = f"{REPOSITORY}/blob/{TAG}/"
PICTURES = f"{REPOSITORY.replace('//github.com/', '//raw.githubusercontent.com/')}/{TAG}/"

LINK = re.compile(
    r"^```.*?^```|^ {4}.*?$|`[^`\n]*`"  # code stays as it is
    r"|(?P<before>\]\(|^\[[^\]]+\]: *|\b(?:src|srcset|href)=\")(?P<target>(?![a-z][a-z0-9+.-]*:|//)[^)\s\"]+)",
    re.DOTALL | re.MULTILINE,
)


def absolute(link: re.Match[str]) -> str:
    """A relative link as an absolute one; code as it is."""
    target = link["target"]
    if target is None:
        return link[0]
    if target.startswith("#"):
        target = f"README.md{target}"
    picture = target.endswith((".png", ".svg", ".gif", ".jpg", ".webp"))
    return link["before"] + (PICTURES if picture else PAGES) + target


setup(
    long_description=LINK.sub(absolute, (HERE / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
