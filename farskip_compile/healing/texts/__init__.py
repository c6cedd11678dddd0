# SPDX-License-Identifier: Apache-2.0
"""Local files of text as batches of tokens.

documents       text, prompts with completions, conversations; the split by document
chat            which tokens are targets; `text_bytes`: how many bytes each stands for
loaders         documents as batches
contamination   held-out text that is in the training text
"""
