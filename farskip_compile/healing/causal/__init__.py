# SPDX-License-Identifier: Apache-2.0
"""A causal model and batches of tokens, on one rank or several: how it is asked, and what its answers are worth.

batches       what a batch is, a stream of them with a position, how a model is called with one
head          the output head, found by dataflow; `asking`: how a model is asked for hidden states instead of logits
losses        forward KL, next-token loss, chunk by chunk
teacher       what the original says: frozen copies of its parameters
evaluate      held-out batches, and differences of evaluations
ranks         several ranks: data parallelism, parameters that are spread; `fully_sharded`: by FSDP2
identity      which model it is; `tensor_files`: tensors on disk, with a seal
"""
