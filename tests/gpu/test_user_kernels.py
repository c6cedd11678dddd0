# SPDX-License-Identifier: Apache-2.0
"""What a user's own Triton kernel writes in place is not in flight; plain Inductor lets it write there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.test_programs import FLOAT32, REASON, process

pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


def test_a_kernel_of_the_users_does_not_write_to_what_is_in_flight(tmp_path: Path) -> None:
    process("tests.gpu.user_kernels", "generate", str(tmp_path))
    found = process("tests.gpu.user_kernels", "run", str(tmp_path))
    assert found["ours.py"] < FLOAT32
    assert found["plain.py"] == "what an all-to-all sends was written to before it had landed"
