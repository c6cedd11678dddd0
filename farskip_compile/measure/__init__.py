# SPDX-License-Identifier: Apache-2.0
"""Measured and predicted time: traces, calibration, simulation."""
