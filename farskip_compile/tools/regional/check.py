# SPDX-License-Identifier: Apache-2.0
"""The check of the table of a model whose layers were compiled one by one.

Contract: `check_model_table` compares the table with the one that a compile of the whole model would have made of the
model as written. It raises, or returns nothing.
"""

from __future__ import annotations

from torch import nn

from farskip_compile.compiler.config import Resolved
from farskip_compile.errors import PartialModelError, Where
from farskip_compile.manifest.check import check_as_written, check_rewired
from farskip_compile.manifest.fingerprint import parameters_of
from farskip_compile.manifest.graph_parameters import GraphParameters
from farskip_compile.manifest.lost import new_parameters
from farskip_compile.passes.residual.table import Table
from farskip_compile.passes.rewire.request import Connectivity, ask


def check_model_table(table: Table, connectivity: Connectivity, settings: Resolved, model: nn.Module) -> None:
    """Compare `table`, the table of `model`, with what `connectivity` and `settings` ask of a whole model.

    Raises:
        ConnectivityError, DenseModelError, LayerRangeError: as for a whole model.
        ManifestError: the manifest describes another model.
        PartialModelError: a layer is wired otherwise than in a compile of the whole model.
    """
    written = table.as_written()
    if settings.manifest is not None:
        shapes = parameters_of(model)
        parameters = GraphParameters(dict(shapes), tuple(shapes), new_parameters(model))
        check_as_written(settings.manifest, written, parameters)
    wanted = ask(written, connectivity, settings.layers).wanted(written)
    for row, should in zip(table.rows, wanted.rows, strict=True):
        if row.reads != should.reads:
            raise PartialModelError(
                f"{row.name} reads {table.text(row.reads)}, and would read {table.text(should.reads)} if the whole "
                "model were compiled",
                way_out="what stands between these layers, or a layer that holds more or less than one attention, "
                'keeps them from being rewired one by one: torch.compile(model, backend="farskip", fullgraph=True)',
                where=Where(layer=row.layer, source=table.where(row)),
            )
    if settings.manifest is not None:
        check_rewired(settings.manifest, table)
