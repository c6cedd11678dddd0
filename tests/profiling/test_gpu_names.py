# SPDX-License-Identifier: Apache-2.0
"""Names of kernels as profiles show them: what communicates, what does not, and how it is called."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.measure.profiling.events import LAUNCH_KINDS
from farskip_compile.measure.profiling.gpu_families import FAMILIES, FUSED, LOOSE, NONE, VAGUE
from farskip_compile.measure.profiling.gpu_names import function_of, kind_of, launched_by, work_of

COMMUNICATE = [
    ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "all_reduce", NONE),
    ("ncclKernel_ReduceScatter_RING_LL_Sum_float(ncclDevComm*, unsigned long, ncclWork*)", "reduce_scatter", NONE),
    ("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclDevComm*, unsigned long, ncclWork*)", "send_recv", VAGUE),
    ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", "send_recv", VAGUE),
    ("ncclSymDevKernel_AllReduce_RSxLD_AGxST_sum_bf16(ncclSymDevArgs)", "all_reduce", NONE),
    ("ncclSymkDevKernel_AllReduce_RSxLDMC_AGxSTMC_sum_bf16(ncclSymkDevWorkArgs4K)", "all_reduce", NONE),
    ("ncclSymkDevKernel_ReduceScatter_RailA2A_LsaLD_sum_bf16(ncclSymkDevWorkArgs4K)", "reduce_scatter", NONE),
    ("void ncclKernelAllToAllv<__nv_bfloat16>(int*, CtranAlgoDeviceState*)", "all_to_all", NONE),
    ("nccl_of_a_later_version(int)", "collective", VAGUE),
    ("ncclDevKernel_Generic_1(ncclDevKernelArgsStorage<4096ul>)", "collective", VAGUE),
    ("_Z23ncclDevKernel_Generic_424ncclDevKernelArgsStorageILm4096EE", "collective", VAGUE),
    ("void rcclGenericKernel<1, false>(ncclDevKernelArgsStorage<4096ul>)", "collective", VAGUE),
    ("mscclKernel_Sum_half_Simple_false(ncclDevComm*, mscclAlgo*, mscclWork*)", "collective", VAGUE),
    ("void mscclpp::collective::allreducePacket<(mscclpp::ReduceOp)0, __half>(__half*)", "all_reduce", NONE),
    ("mscclpp::collective::allgatherFullmesh2(void*, mscclpp::MemoryChannelDeviceHandle*)", "all_gather", NONE),
    ("mscclpp::collective::alltoallvKernel(mscclpp::DeviceHandle<mscclpp::MemoryChannel>*)", "all_to_all", NONE),
    ("void mscclpp::executionKernel<__half, mscclpp::LL16Packet>(int, __half*)", "collective", VAGUE),
    ("void (anonymous namespace)::one_shot_all_reduce_kernel<c10::BFloat16, 16, 8>(float**)", "all_reduce", NONE),
    ("void (anonymous namespace)::two_shot_all_reduce_kernel<c10::BFloat16, 16, 8>(float**)", "all_reduce", VAGUE),
    ("void <unnamed>::two_shot_all_reduce_kernel_inplace<c10::BFloat16, (int)16, (int)8>", "all_reduce", NONE),
    ("void (anonymous namespace)::multimem_one_shot_reduce_kernel<float, 16>(float*)", "all_reduce", VAGUE | LOOSE),
    ("void <unnamed>::multimem_all_gather_kernel<(int)16>(char *, char *, unsigned long)", "all_gather", NONE),
    ("multimem_allreduce_bf16_kernel(unsigned long, unsigned long const*, long)", "all_reduce", NONE),
    ("multimem_of_others(unsigned long)", "collective", VAGUE),
    ("c10d::symmetric_memory::barrier_kernel(unsigned int**, int, int, int, unsigned long)", "barrier", NONE),
    ("c10d::symmetric_memory::wait_signal_kernel(unsigned int**, int, int, int)", "wait_signal", LOOSE),
    ("void c10d::nvshmem_extension::exchangeSplitAndOffset_2d<true>(long*, long*, int)", "all_to_all", NONE),
    ("void deep_ep::intranode::cached_notify_combine<8>(void**, int*)", "cached_notify_combine", LOOSE),
    ("_ZN7deep_ep9internode8dispatchILb0ELi4ELb0ELi28EEEvP4int4", "dispatch", LOOSE),
    ("void deep_ep::elastic::hybrid_dispatch_impl<true, 8>(void*, int*, ncclDevComm)", "hybrid_dispatch", LOOSE),
    ("void hybrid_ep::dispatch_kernel<unsigned char, 4, 8>(int)", "dispatch", LOOSE),
    ("void a2a_combine_recv_kernel<16, 7168>(unsigned long, unsigned int*)", "combine_recv", LOOSE),
    ("EpDispatchIntraNodeKernel_bf16", "dispatch", LOOSE),
    ("void nvshmemi_signal_op_kernel(unsigned long*, unsigned long, int, int)", "shmem", VAGUE | LOOSE),
    ("void rdxn_on_stream_kernel<float, (rdxn_ops)4>(int, float*, float const*)", "all_reduce", NONE),
    ("void reducescatter_on_stream_kernel<float, (rdxn_ops)4>(int, float*)", "reduce_scatter", NONE),
    ("void fcollect_on_stream_kernel<float>(int, float*, float const*)", "all_gather", NONE),
    ("void alltoall_on_stream_kernel<float>(int, float*, float const*)", "all_to_all", NONE),
    ("void broadcast_on_stream_kernel<float>(int, float*, float const*)", "broadcast", NONE),
    ("void barrier_on_stream_kernel_threadgroup<(threadgroup_t)1>(int, int)", "barrier", NONE),
    ("void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData*)", "all_reduce", NONE),
    ("_ZN5aiter33reduce_scatter_cross_device_storeIDF16bLi8EEEvPNS_8RankDataE", "reduce_scatter", NONE),
    ("void quickreduce::allreduce_prototype_twoshot<AllReduceTwoshot<__half>, __half>", "all_reduce", NONE),
    ("void (anonymous namespace)::all_reduce_one_shot_push_kernel<__half, 4u, true>(int)", "all_reduce", NONE),
    ("void aiter::allreduce_fusion_kernel_1stage<std::bfloat16_t, 4, true>(int*)", "all_reduce_fused", FUSED),
    ("void flashinfer::trtllm_mnnvl_allreduce::oneshotAllreduceFusionKernel<8>()", "all_reduce_fused", FUSED),
    ("void flashinfer::trtllm_mnnvl_allreduce::rmsNormLamport<8>(float*)", "all_reduce_fused", FUSED | LOOSE),
    ("void flashinfer::trtllm_mnnvl_allreduce::twoshotAllreduceKernel<8, float>(float*)", "all_reduce", NONE),
    ("void tensorrt_llm::kernels::moe_alltoall::moeA2ADispatchKernel<8, false>(int*)", "dispatch", LOOSE),
    ("kuserbuffers_pushsend(int*, int*, int4*, int4*, int)", "send", NONE),
    ("userbuffers_fp16_sum_inplace_gpu_rw_ag(int, int, int)", "userbuffers", VAGUE | LOOSE),
    ("void cutlass::device_kernel<G<PersistentAsyncInputScheduler<X>>>(P)", "all_gather_fused", FUSED | LOOSE),
    ("Memcpy PtoP (Device -> Device)", "peer_copy", VAGUE | LOOSE),
    ("Memcpy <unknown> (Device -> Device)", "peer_copy", VAGUE | LOOSE),
]  # fmt: skip

COMPUTE = [
    "triton_poi_fused_add_all_reduce_4",
    "triton_red_fused__to_copy_add_moe_forward_rms_norm_3",
    "triton_per_fused_allreduce_fusion_kernel_1",
    "void deep_ep::layout::get_dispatch_layout<256, 32, 8>(long const*, int*)",
    "_ZN7deep_ep6layout19get_dispatch_layoutILi256ELi32ELi8EEEvPKl",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int)",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>(at::native::ReduceOp<float>)",
    "void splitKreduce_kernel<32, 16, int, float>(cublasSplitKParams<float>)",
    "void checksum<ncclDevComm>(ncclDevKernelArgsStorage<4096ul>)",
    "void flashinfer::norm::FusedAddRMSNormKernel<8u, __nv_bfloat16>(__nv_bfloat16*)",
    "local_device_load_rmsnorm_naive<float>",
    "ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_tn",
    "Cijk_Alik_Bljk_BBS_BH_Bias_AS_SAV_UserArgs_MT128x128x64",
    "fused_moe_kernel",
    "Memcpy DtoD (Device -> Device)",
    "Memset (Device)",
    "",
]


@pytest.mark.parametrize(("name", "kind", "traits"), COMMUNICATE, ids=[one[0][:40] for one in COMMUNICATE])
def test_what_communicates(name: str, kind: str, traits: object) -> None:
    assert work_of(name) == (kind, traits)


@pytest.mark.parametrize("name", COMPUTE)
def test_what_computes(name: str) -> None:
    assert work_of(name) is None


def test_every_row_is_of_use() -> None:
    """Each is the first that matches one of the names above: a row with a mistake in it would match none."""
    functions = [function_of(name) for name in [*(name for name, _, _ in COMMUNICATE), *COMPUTE]]
    rows = [row.pattern for family in FAMILIES for row in family.rows]
    used = {next((pattern for pattern in rows if re.search(pattern, function)), "") for function in functions}
    assert [pattern for pattern in rows if pattern not in used] == []


@pytest.mark.parametrize(
    ("launch", "kind", "owns"),
    [
        ("c10d::alltoall_base_", "all_to_all", True),
        ("_c10d_functional::all_to_all_single", "all_to_all", True),
        ("c10d::_allgather_base_", "all_gather_into_tensor", True),
        ("c10d::reduce_scatter_tensor_coalesced_", "reduce_scatter_tensor_coalesced", True),
        ("c10d::recv_any_source_", "recv", True),
        ("symm_mem::reduce_scatter_out", "reduce_scatter", True),
        ("symm_mem::one_shot_all_reduce_copy_out", "all_reduce", True),
        ("symm_mem::nvshmem_all_to_all", "all_to_all", True),
        ("_c10d_functional::batch_p2p_ops", "batch_isend_irecv", True),
        ("_c10d_functional::irecv", "recv", True),
        ("nccl:all_to_all", "all_to_all", False),
        ("nccl:_reduce_scatter_base", "reduce_scatter_tensor", False),
        ("nccl:send 0->1", "send", False),
        ("ncclAlltoAll", "all_to_all", True),
        ("ncclAllReduce_impl", "all_reduce", True),
    ],
)
def test_what_launches(launch: str, kind: str, owns: bool) -> None:
    assert launched_by(launch) == (kind, owns)


def test_operators_of_this_torch() -> None:
    """They are called as on a CPU, but that forms of an all-to-all are not told apart."""
    known = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    for operator, (kind, _) in LAUNCH_KINDS.items():
        assert f"c10d::{operator}" in known
        launch = launched_by(f"c10d::{operator}")
        assert launch is not None
        assert launch.kind.removesuffix("_coalesced") == kind.removesuffix("_coalesced").removesuffix("_single")
    unknown = {name for name in known if name.startswith("c10d::") and launched_by(name) is None}
    assert unknown <= {"c10d::check_for_nan", "c10d::monitored_barrier_"}


@pytest.mark.parametrize(
    "name", ["ncclGroupEnd", "_c10d_functional::wait_tensor", "aten::mm", "gloo:all_to_all", "record_param_comms", ""]
)
def test_what_says_nothing(name: str) -> None:
    assert launched_by(name) is None


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("_Z23ncclDevKernel_Generic_424ncclDevKernelArgsStorageILm4096EE", "ncclDevKernel_Generic_4"),
        ("_ZN12_GLOBAL__N_126one_shot_all_reduce_kernelIfEEvPT_", "one_shot_all_reduce_kernel"),
        ("void (anonymous namespace)::multimem_all_gather_kernel<16>(char*)", "multimem_all_gather_kernel"),
        ("fused_moe_kernel", "fused_moe_kernel"),
    ],
)
def test_function_of_a_name(name: str, function: str) -> None:
    assert function_of(name) == function


@given(st.text(max_size=40) | st.from_regex(r"_ZN?(\d{1,4}[a-z_]{0,9}){0,5}", fullmatch=True))
def test_any_name_has_a_function(name: str) -> None:
    """Names may be anything, cut off included; and one that is only a name is its own function."""
    function = function_of(name)
    assert len(function) <= len(name) + 16
    assert kind_of(kind_of(name)) == kind_of(name) or not name.isascii()
    if re.fullmatch(r"[a-zA-Z]\w*(::\w+)*", name):
        assert function == name
