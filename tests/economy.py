"""What all processes of the tests do to spend less time on things that no test is about."""

from __future__ import annotations

import gc
import os


def no_vector_instructions() -> None:
    """Let Inductor build scalar kernels, in this process and those that it starts; before Inductor is imported.

    Which instructions it takes is up to the machine, so no test may rest on it. Scalar kernels are written and built
    in two thirds of the time, and the programs that ask the machine are not built, ten for each new cache folder.
    """
    os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")


def collect_rarely() -> None:
    """What is imported stays, and need not be walked; a compile makes many objects and little garbage."""
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)
