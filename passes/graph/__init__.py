# SPDX-License-Identifier: Apache-2.0
"""Questions about the nodes of an FX graph, and walks over it: what all passes build on."""
