# SPDX-License-Identifier: Apache-2.0
"""A rewired model as a program of `torch.export`, which runs without this package.

main          `export`: the program of one call of a model
call          the call as a rewired graph, with the origins of the graph's inputs and of the call's results
object_state  the contents of Python objects, which the capture of the call may change
module        the graph as a module whose parameters have the same names as in the model
packages      the manifest in a program, in a file of it, and in a package of AOTInductor
"""

from farskip_compile.tools.export.main import export
from farskip_compile.tools.export.packages import manifest_of, metadata_of

__all__ = ["export", "manifest_of", "metadata_of"]
