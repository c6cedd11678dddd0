# SPDX-License-Identifier: Apache-2.0
"""Each Python file says its license in the form that tools read, in its first line.

Files are copied one by one into other trees, without the LICENSE beside them; vLLM and DeepSpeed do the same. An empty
file has nothing to license.
"""

from __future__ import annotations

from tests.structure.project import PROJECT
from tests.structure.sources import ROOT, own_files

LINE = f"# SPDX-License-Identifier: {PROJECT['license']}\n"


def test_each_file_begins_with_it() -> None:
    files = [name for name in own_files() if name.endswith(".py") and (ROOT / name).stat().st_size]
    assert len(files) > 900
    without = [name for name in files if not (ROOT / name).read_text(encoding="utf-8").startswith(LINE)]
    assert not without, f"put {LINE.strip()!r} before the first line of {', '.join(without)}"
