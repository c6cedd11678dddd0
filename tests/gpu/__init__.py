# SPDX-License-Identifier: Apache-2.0
"""CUDA and ROCm programs on a machine without a GPU: generated, compiled, and run by an interpreter on the CPU."""
