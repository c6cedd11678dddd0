# SPDX-License-Identifier: Apache-2.0
"""What passes between layers that are compiled one by one: the stream in parts, and who gets it whole.

`stream` is the carrier itself, `passing` makes one of what a compiled layer returns, `landing` waits for what a
recomputed layer has in flight, `trail` puts the layers' tables together.
"""
