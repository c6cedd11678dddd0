# SPDX-License-Identifier: Apache-2.0
"""A rewired model as a program of `torch.export`, which runs without this package.

main        `export`: the program of one call of a model
call        that call as a rewired graph, and what the inputs and outputs of the graph are
module      the graph as a module whose parameters have the names that they have in the model
packages    the manifest in a program, in a file of it, and in a package of AOTInductor
"""

from farskip_compile.tools.export.main import export
from farskip_compile.tools.export.packages import manifest_of, metadata_of

__all__ = ["export", "manifest_of", "metadata_of"]
