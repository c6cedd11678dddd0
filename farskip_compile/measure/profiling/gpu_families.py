# SPDX-License-Identifier: Apache-2.0
"""Kernels that communicate, by the names that their projects give them: data, and nothing else.

In:    nothing.
Out:   `FAMILIES`: the kernels of each project, and the communication of each kernel.
Never: questions; these are in `gpu_names.py`, which takes the first row whose pattern a name matches.

A pattern is searched in the name of the function alone: namespaces, but no parameters, no template arguments and no
return type. `kind` is the name in reports; `\\g<what>` stands for the group `what` of the match, and `AllReduce`
becomes `all_reduce`. A name that may mean compute or communication counts as communication: exposure may come out too
large, never too small.
"""

from __future__ import annotations

from enum import Flag, auto
from typing import NamedTuple


class Trait(Flag):
    """Further facts that a name states."""

    NONE = 0
    VAGUE = auto()
    """The name does not state the collective; the launching side may."""
    FUSED = auto()
    """The kernel computes as well. It counts as communication alone."""
    LOOSE = auto()
    """A rank may be done with it before another has begun."""


NONE, VAGUE, FUSED, LOOSE = Trait.NONE, Trait.VAGUE, Trait.FUSED, Trait.LOOSE


class KernelPattern(NamedTuple):
    """Some kernels of a project."""

    pattern: str
    kind: str | None
    """The name that reports use; None for kernels that compute, although a later row would match."""
    traits: Trait = NONE


class KernelFamily(NamedTuple):
    """The kernels of one project, and the sources of their names."""

    project: str
    source: str
    rows: tuple[KernelPattern, ...]


_DEEP_EP = r"^deep_ep::(?:\w+::)*"

FAMILIES = (
    KernelFamily(
        "NCCL, RCCL, MSCCL, NCCLX",
        "NCCL 2.19 to 2.30: src/device/generate.py (ncclDevKernel_), before: ncclKernel_; 2.27: ncclSymDevKernel_; "
        "from 2.28 on: src/device/symmetric/generate.py (ncclSymkDevKernel_). RCCL of ROCm 6 and 7: "
        "src/device/common.cu (ncclDevKernel_Generic_1, _2, _4), rcclGenericKernel in traces of ROCm 7. MSCCL in RCCL: "
        "src/include/msccl/msccl_kernel.h. "
        "NCCLX: torchcomms, comms/ctran/algos (ncclKernelAllToAllv)",
        (
            KernelPattern(r"^ncclDevKernel_Generic|^rcclGenericKernel|^mscclKernel", "collective", VAGUE),
            KernelPattern(r"^nccl(?:Dev)?Kernel_?SendRecv", "send_recv", VAGUE),
            KernelPattern(r"^(?:nccl|rccl)\w*?Kernel_?(?P<what>[A-Z][A-Za-z]*)", r"\g<what>"),
            KernelPattern(r"^(?:nccl|rccl|msccl(?!pp))", "collective", VAGUE),
        ),
    ),
    KernelFamily(
        "MSCCL++",
        "2026: src/ext/collectives, as profiles of its NCCL interface show them (mscclpp::collective::allreducePacket)",
        (
            KernelPattern(r"^mscclpp::(?:\w+::)*all_?reduce", "all_reduce"),
            KernelPattern(r"^mscclpp::(?:\w+::)*all_?gather", "all_gather"),
            KernelPattern(r"^mscclpp::(?:\w+::)*all_?to_?all", "all_to_all"),
            KernelPattern(r"^mscclpp", "collective", VAGUE),
        ),
    ),
    KernelFamily(
        "PyTorch's symmetric memory",
        "torch 2.5 to 2.13, torch/csrc/distributed/c10d/symm_mem: CUDASymmetricMemoryOps.cu, CUDASymmetricMemory.cu "
        "(signals), nvshmem_extension.cu, and its counterpart on rocSHMEM. The two-shot kernel reduces and scatters, "
        "too; the one-shot kernel on multicast also reduces to one rank",
        (
            KernelPattern(r"\b(?:one_shot_all_reduce|multimem_all_?reduce)_\w*kernel", "all_reduce"),
            KernelPattern(r"\btwo_shot_all_reduce_kernel_inplace", "all_reduce"),
            KernelPattern(r"\btwo_shot_all_reduce_kernel", "all_reduce", VAGUE),
            KernelPattern(r"\bmultimem_one_shot_(?:all_)?reduce_kernel", "all_reduce", VAGUE | LOOSE),
            KernelPattern(r"\bmultimem_all_gather_kernel", "all_gather"),
            KernelPattern(r"\bmultimem_\w+", "collective", VAGUE),
            KernelPattern(r"\bbarrier_kernel", "barrier"),
            KernelPattern(r"\b(?P<what>put_signal|wait_signal)_kernel", r"\g<what>", LOOSE),
            KernelPattern(r"\b(?:exchangeSplitAndOffset|allToAllV)", "all_to_all"),
        ),
    ),
    KernelFamily(
        "DeepEP",
        "1.2: csrc/kernels/{intranode,internode,internode_ll,layout}.cu; 2.0: csrc/kernels/legacy, and compiled when "
        "needed: deep_ep/include/deep_ep/impls (dispatch_impl, hybrid_combine_impl, their epilogues)",
        (
            KernelPattern(_DEEP_EP + r"(?:layout::|get_dispatch_layout)", None),
            KernelPattern(_DEEP_EP + r"(?P<what>\w+?)(?:_impl)?$", r"\g<what>", LOOSE),
        ),
    ),
    KernelFamily(
        "HybridEP",
        "DeepEP, branch hybrid-ep: csrc/hybrid_ep/backend/hybrid_ep_backend.cuh",
        (KernelPattern(r"^hybrid_ep::(?P<what>dispatch|combine|device_sync)_kernel", r"\g<what>", LOOSE),),
    ),
    KernelFamily(
        "pplx-garden",
        "p2p-all-to-all/a2a-kernels/src/a2a: each exchange is one kernel that sends and one that receives",
        (KernelPattern(r"\ba2a_(?P<what>(?:dispatch|combine)_(?:send|recv))_kernel", r"\g<what>", LOOSE),),
    ),
    KernelFamily(
        "MoRI",
        "2026: src/ops/dispatch_combine/*.hpp",
        (KernelPattern(r"\bEp(?P<what>Dispatch|Combine)\w*Kernel", r"\g<what>", LOOSE),),
    ),
    KernelFamily(
        "NVSHMEM, rocSHMEM",
        "NVSHMEM 2.11 to 3.4: src/host/stream/coll, nvshmemi_h_to_d_coll_defs.cuh; signals: src/host/stream/comm",
        (
            KernelPattern(r"\b(?:rocshmem_)?reducescatter\w*_on_stream_kernel", "reduce_scatter"),
            KernelPattern(r"\b(?:rocshmem_)?(?:rdxn|reduce)\w*_on_stream_kernel", "all_reduce"),
            KernelPattern(r"\b(?:rocshmem_)?fcollect\w*_on_stream_kernel", "all_gather"),
            KernelPattern(r"\b(?:rocshmem_)?alltoall\w*_on_stream_kernel", "all_to_all"),
            KernelPattern(r"\b(?:rocshmem_)?(?:barrier|sync)\w*_on_stream_kernel", "barrier"),
            KernelPattern(r"\b(?:rocshmem_)?broadcast\w*_on_stream_kernel", "broadcast"),
            KernelPattern(r"\b(?:nvshmem|rocshmem)", "shmem", VAGUE | LOOSE),
        ),
    ),
    KernelFamily(
        "all-reduces of vLLM, SGLang and AITER",
        "vLLM 0.6 to 0.31: csrc/custom_all_reduce.cuh, csrc/quickreduce; SGLang: sgl-kernel/csrc/allreduce, and the "
        "kernels that it compiles when needed (all_reduce_one_shot_push_kernel); AITER: "
        "csrc/include/custom_all_reduce.cuh",
        (
            KernelPattern(r"(?<![A-Za-z])cross_device_reduce_[12]stage", "all_reduce"),
            KernelPattern(r"^quickreduce::", "all_reduce"),
            KernelPattern(r"\ball_reduce_(?:one|two)_shot\w*_kernel", "all_reduce"),
            KernelPattern(r"(?<![A-Za-z])reduce_scatter_cross_device_store", "reduce_scatter"),
        ),
    ),
    KernelFamily(
        "FlashInfer, TensorRT-LLM, AITER: all-reduce with what follows it",
        "FlashInfer 0.2 to 0.6: include/flashinfer/comm/trtllm_allreduce_fusion.cuh (with RMS norm and quantisation), "
        "trtllm_moe_allreduce_fusion.cuh, trtllm_mnnvl_allreduce.cuh (rmsNormLamport reads what peers still send); "
        "csrc/nv_internal/tensorrt_llm/kernels/communicationKernels/moeAlltoAllKernels.cu; TensorRT-LLM: "
        "cpp/tensorrt_llm/kernels/customAllReduceKernels.cu; FBGEMM: fbgemm_gpu/experimental/gen_ai/src/comm/car.cu",
        (
            KernelPattern(r"(?i)allreduce_?fusion_?kernel", "all_reduce_fused", FUSED),
            KernelPattern(r"\brmsNormLamport", "all_reduce_fused", FUSED | LOOSE),
            KernelPattern(r"(?i)\b(?:one|two)_?shot_?all_?reduce", "all_reduce"),
            KernelPattern(r"\bmoeA2A(?P<what>Dispatch|Combine)Kernel", r"\g<what>", LOOSE),
        ),
    ),
    KernelFamily(
        "Transformer Engine's user buffers",
        "2.x: transformer_engine/common/comm_gemm_overlap/userbuffers/userbuffers.cu",
        (
            KernelPattern(r"\bkuserbuffers_push(?P<what>send|recv)", r"\g<what>"),
            KernelPattern(r"\bk?userbuffers_", "userbuffers", VAGUE | LOOSE),
        ),
    ),
)
