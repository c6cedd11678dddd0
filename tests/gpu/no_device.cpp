// What a build of PyTorch for CPUs lacks to hold fake tensors on "cuda" and to compile for them: a guard that guards
// nothing, hooks that say that there is one device, and the choice between its kernels for attention. Loaded before torch
// is imported (tests/gpu/before_torch.py).
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>

namespace {

constexpr auto CUDA = c10::DeviceType::CUDA;
using Guard = c10::impl::FakeGuardImpl<CUDA>;

Guard nothing_to_guard;
c10::impl::DeviceGuardImplRegistrar guard_of_cuda(CUDA, &nothing_to_guard);

struct OneDevice final : at::CUDAHooksInterface {
  explicit OneDevice(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
};

// As on a device: flash attention for halves whose heads have one width, efficient attention for all else without a mask
// that this project's models have.
int64_t attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const std::optional<at::Tensor>& mask, double dropout, bool causal, std::optional<double> scale,
                  bool grouped) {
  const auto halves = query.scalar_type() == at::kHalf || query.scalar_type() == at::kBFloat16;
  const auto width = query.sym_size(-1);
  if (halves && !mask && width == key.sym_size(-1) && width == value.sym_size(-1)) {
    return static_cast<int64_t>(sdp::SDPBackend::flash_attention);
  }
  return static_cast<int64_t>(mask || grouped ? sdp::SDPBackend::math : sdp::SDPBackend::efficient_attention);
}

}  // namespace

namespace at {
namespace native {
REGISTER_CUDA_DISPATCH(_fused_sdp_choice_stub, &attention)
}
C10_REGISTER_CLASS(CUDAHooksRegistry, OneDevice, OneDevice)
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", OneDevice)
}  // namespace at
