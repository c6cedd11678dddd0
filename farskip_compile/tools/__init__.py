# SPDX-License-Identifier: Apache-2.0
"""What is done with a model beside compiling it: capture, explain, prepare, export, status, the zoo."""
