# SPDX-License-Identifier: Apache-2.0
"""The residual stream between layers that are compiled one by one, in parts that may still be in flight.

`stream` is the carrier that a layer returns, `stream_parts` its parts and the whole tensor for other readers,
`visible_class` the class that other code sees, `outputs` makes carriers of a compiled layer's outputs, `landing` waits
for the collectives that a recomputed layer has in flight, `model_table` puts the layers' tables together.
"""
