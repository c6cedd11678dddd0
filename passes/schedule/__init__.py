# SPDX-License-Identifier: Apache-2.0
"""Order compute and collectives so that these overlap: on the graph (`graph`), then on kernels (`kernels`)."""
