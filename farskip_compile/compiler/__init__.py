# SPDX-License-Identifier: Apache-2.0
"""The compiler: from a graph of Dynamo to what Inductor makes of it."""
