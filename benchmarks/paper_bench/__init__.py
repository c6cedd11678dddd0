# SPDX-License-Identifier: Apache-2.0
"""AMD's published figures for FarSkip, and what `farskip_compile.measure.simulate` predicts for the same settings."""
