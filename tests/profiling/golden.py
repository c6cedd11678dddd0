# SPDX-License-Identifier: Apache-2.0
"""Traces of GPU programs as real ones look, made by hand, with the times that follow from them.

The form is kineto's (libkineto/src/output_json.cpp: events, their order, `External id`, what it repeats at kernels;
CuptiActivity.cpp: arguments of kernels, copies and calls) for what torch 2.11 to 2.13 records
(torch/csrc/distributed/c10d/ParamCommsUtils.hpp, torch/csrc/profiler/util.cpp). Names of kernels are as profiles show
them. Times are in microseconds. Beside each trace stands its timeline, from which the expected times were computed by
hand: communication, and how much of it is exposed, both as unions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.profiling.gpu_traces import GEMM, SEND_RECV, kernel
from tests.profiling.traces import Event, annotation, event

ATTENTION = "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4> >(flash::Flash_fwd_params)"
FUSED = "triton_poi_fused_add_all_reduce_4"
EP = {
    "Process Group Name": "3",
    "Process Group Description": "ep",
    "Process Group Ranks": "[0, 1, 2, 3, 4, 5, 6, 7]",
    "Group size": 8,
}
TP = {"Process Group Name": "2", "Process Group Description": "tp", "Process Group Ranks": "[0, 1]", "Group size": 2}


@dataclass(frozen=True)
class Golden:
    """A trace, and what must be said of it: (communication, exposed), by kind with a count before."""

    events: list[Event]
    total: tuple[int, int]
    kinds: dict[str, tuple[int, int, int]]
    notes: tuple[str, ...] = ()
    """How each of them begins, or what is in it."""


def collective(name: str, group: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What `record_param_comms` has, and the kernel again."""
    sizes = {"In msg nelems": 4096, "Out msg nelems": 4096, "dtype": "BFloat16", "Seq": 7}
    return {"Collective name": name, **sizes, **group, **more}


def call(at: float, correlation: int, tid: int = 1, name: str = "cudaLaunchKernelExC") -> Event:
    return event("cuda_runtime", name, at, at + 1, tid, cbid=430, correlation=correlation)


def operator(name: str, start: float, end: float, external: int, **args: Any) -> Event:
    return event("cpu_op", name, start, end, 1, **{"External id": external, **args})


def mark(name: str, start: float, end: float, stream: int) -> Event:
    """Around work on a stream, one nanosecond longer at either end."""
    times = {"ts": start - 0.001, "dur": end - start + 0.002}
    return {**kernel(name, start, end, stream), **times, "cat": "gpu_user_annotation", "args": {"External id": 99}}


# stream 7   attention 0..100              product 140..200
# ep 31                  dispatch 60........150      combine 190...230
# tp 35                       all-reduce 100..120
# pp 39                                                      send 220..240
# exposed: 100..140, 200..240
NCCL = Golden(
    [
        kernel(ATTENTION, 0, 100),
        kernel(
            SEND_RECV, 60, 150, 31, correlation=11, **collective("all_to_allv", EP, **{"In split size": "[512, ...]"})
        ),
        kernel("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 100, 120, 35, **TP),
        kernel(GEMM, 140, 200),
        kernel(SEND_RECV, 190, 230, 31, **collective("all_to_all", EP)),
        kernel(SEND_RECV, 220, 240, 39, **collective("send", {"Process Group Name": "5"}, **{"Dst Rank": 8})),
    ],
    total=(140, 80),
    kinds={"all_to_all": (2, 130, 70), "all_reduce": (1, 20, 20), "send": (1, 20, 20)},
)

# stream 7   product 0....50   60.....110                            180..200
# sends   a 10..40, b 40....70       c 100...130   d 140..150   e 170....190
# a: its record by the id of the operator; b: inside of c10d::alltoall_base_; c: a mark on the stream;
# d: inside of the title of a coalesced launch; e: nothing says what it is
# exposed: b 50..60, c 110..130, d all, e 170..180
NCCL_WITHOUT = Golden(
    [
        operator("c10d::alltoall_base_", 0, 8, 20),
        operator("record_param_comms", 1, 3, 21, **collective("all_to_allv", EP)),
        operator("c10d::alltoall_base_", 10, 18, 22),
        operator("record_param_comms", 11, 17, 23),
        annotation("nccl:all_to_all", 12, 16),
        call(13, 102),
        operator("aten::mm", 18, 25, 24),
        call(19, 103),
        annotation("nccl:coalesced", 30, 34),
        call(31, 104),
        call(40, 105),
        kernel(GEMM, 0, 50, correlation=103),
        kernel(SEND_RECV, 10, 40, 31, correlation=101, **{"External id": 21}),
        kernel(SEND_RECV, 40, 70, 31, correlation=102),
        kernel(GEMM, 60, 110, correlation=106),
        kernel(SEND_RECV, 100, 130, 31, correlation=107),
        kernel(SEND_RECV, 140, 150, 39, correlation=104),
        kernel(SEND_RECV, 170, 190, 39, correlation=105),
        kernel(GEMM, 180, 200),
        mark("nccl:all_to_all", 100, 130, 31),
    ],
    total=(120, 50),
    kinds={"all_to_all": (3, 90, 30), "batch_isend_irecv": (1, 10, 10), "send_recv": (1, 20, 10)},
    notes=("1 kernel of grouped sends and receives (send_recv)",),
)

# stream 7   layout 0..5            product 20..............80
# deep_ep 15      notify 5..10 dispatch 10....40   combine 70....95   barrier 95..100
# exposed: 5..20, 80..100
DEEP_EP = Golden(
    [
        kernel(
            "void deep_ep::layout::get_dispatch_layout<256, 32, 8>(long const*, int*, int*, int*, bool*, int, int)",
            0,
            5,
        ),
        kernel(
            "void deep_ep::intranode::notify_dispatch<8>(int const*, int*, int const*, int*, int, bool const*)",
            5,
            10,
            15,
        ),
        kernel("void deep_ep::internode_ll::dispatch<true, 3, 10, 7168>(void*, float*, int*, long*, int*)", 10, 40, 15),
        kernel(
            "void deep_gemm::sm90_fp8_gemm_1d2d_impl<0u, 4096u, 7168u, 1u, 128u>(float*, int*, unsigned int)", 20, 80
        ),
        kernel("void deep_ep::elastic::combine_impl<true, 8, 20>(void*, void*, ncclDevComm, int)", 70, 95, 15),
        kernel("void barrier_on_stream_kernel_threadgroup<(threadgroup_t)1>(int, int)", 95, 100, 15),
    ],
    total=(65, 35),
    kinds={
        "notify_dispatch": (1, 5, 5),
        "dispatch": (1, 30, 10),
        "combine": (1, 25, 15),
        "barrier": (1, 5, 5),
    },
)

# stream 7   fused 0....30                       product 60........100
# others     two-shot 20..40  vLLM 40..50  with RMS norm 50....70  all-to-all 90..110  tile 110..120
# the last by symm_mem::tile_reduce itself, whatever its name; what aten::copy_ launches inside of it computes: 120..130
# exposed: 30..60, 100..120
SYMMETRIC = Golden(
    [
        operator("symm_mem::tile_reduce", 0, 20, 50),
        call(2, 110),
        operator("aten::copy_", 10, 18, 51),
        call(12, 111),
        kernel(FUSED, 0, 30),
        kernel(
            "void (anonymous namespace)::two_shot_all_reduce_kernel_inplace<c10::BFloat16, 16, 2>(c10::BFloat16**, "
            "unsigned long, unsigned long, unsigned int**, unsigned long, unsigned long)",
            20,
            40,
            15,
        ),
        kernel(
            "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData*, vllm::RankSignals, "
            "vllm::Signal*, __nv_bfloat16*, int, int)",
            40,
            50,
            15,
        ),
        kernel(
            "void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<(flashinfer::"
            "trtllm_allreduce_fusion::AllReduceFusionPattern)1, __nv_bfloat16, 8, false, false>(flashinfer::"
            "trtllm_allreduce_fusion::AllReduceFusionParams<__nv_bfloat16>)",
            50,
            70,
            15,
        ),
        kernel(GEMM, 60, 100),
        kernel("allToAllV_2d(void*, void*, long*, long*, unsigned long, int, int)", 90, 110, 15),
        kernel("reduce_of_a_tile(float*)", 110, 120, 15, correlation=110),
        kernel("void at::native::elementwise_kernel<128, 4>(int)", 120, 130, 15, correlation=111),
    ],
    total=(80, 50),
    kinds={
        "all_reduce": (2, 30, 20),
        "all_reduce_fused": (1, 20, 10),
        "all_to_all": (1, 20, 10),
        "tile_reduce": (1, 10, 10),
    },
    notes=("Kernels that communicate and compute at once (1: allreduce_fusion_kernel_oneshot_lamport) count",),
)

# stream 7   product 0.........50                       copy here 80..90
# engines    to peers 10..30, 20..40     gathered 60....80
# the gathered one is NCCL's all-gather by copy engines, which CUPTI calls a copy on the device where it goes to the
# rank itself; exposed: 60..80
COPY_ENGINES = Golden(
    [
        operator("c10d::_allgather_base_", 0, 9, 30),
        operator("record_param_comms", 1, 8, 31, **collective("_allgather_base", EP)),
        kernel(GEMM, 0, 50),
        kernel("Memcpy PtoP (Device -> Device)", 10, 30, 20, fromDevice=0, inDevice=0, toDevice=1),
        kernel("Memcpy PtoP (Device -> Device)", 20, 40, 21, fromDevice=0, inDevice=0, toDevice=2),
        kernel("Memcpy DtoD (Device -> Device)", 60, 80, 22, **{"External id": 31}),
        kernel("Memcpy DtoD (Device -> Device)", 80, 90),
    ],
    total=(50, 20),
    kinds={"peer_copy": (2, 30, 0), "all_gather_into_tensor": (1, 20, 20)},
    notes=("Copies between GPUs (2) count as communication",),
)

# stream 1   product 0.....40                     50......90
# RCCL 3     with its record 30..50   generic 60..70   msccl 80..100   mangled 100..110
# AITER 5                                                                           all-reduce 110..120
# exposed: 40..50, 90..120
RCCL = Golden(
    [
        kernel("Cijk_Alik_Bljk_BBS_BH_Bias_AS_SAV_UserArgs_MT128x128x64_MI16x16x1_SN_LDSB1", 0, 40, 1),
        kernel("ncclDevKernel_Generic_4(ncclDevKernelArgsStorage<4096ul>)", 30, 50, 3, **collective("all_to_allv", EP)),
        kernel("Cijk_Ailk_Bjlk_BBS_BH_Bias_AS_SAV_UserArgs_MT256x256x32_MI16x16x1_SN_LDSB0", 50, 90, 1),
        kernel("void rcclGenericKernel<1, false>(ncclDevKernelArgsStorage<4096ul>)", 60, 70, 3),
        kernel("mscclKernel_Sum_hip_bfloat16_Simple_false(ncclDevComm*, mscclAlgo*, mscclWork*)", 80, 100, 3),
        kernel("_Z23ncclDevKernel_Generic_424ncclDevKernelArgsStorageILm4096EE", 100, 110, 3),
        kernel("void aiter::cross_device_reduce_2stage<std::bfloat16_t, 8, false>(aiter::RankData*)", 110, 120, 5),
    ],
    total=(70, 40),
    kinds={"all_to_all": (1, 20, 10), "collective": (3, 40, 20), "all_reduce": (1, 10, 10)},
    notes=("3 collectives of unknown kind",),
)

GOLDEN = {
    "nccl": NCCL,
    "nccl without arguments": NCCL_WITHOUT,
    "deep_ep": DEEP_EP,
    "symmetric memory": SYMMETRIC,
    "copy engines": COPY_ENGINES,
    "rccl": RCCL,
}
