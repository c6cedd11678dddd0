// What a build of PyTorch for CPUs lacks to hold fake tensors on "cuda" and to compile for them: a guard that guards
// nothing, and hooks that say that there is one device. Loaded before torch is imported (tests/gpu/before_torch.py).
#include <ATen/detail/CUDAHooksInterface.h>
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

}  // namespace

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, OneDevice, OneDevice)
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", OneDevice)
}  // namespace at
