// The devices that an op's body runs on. A body is a template on Cpu or Cuda, fills a kernel's
// arguments, and calls Device::run(x, [&](const auto& where) { kernel(args, where); }).
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>

#ifdef BITPARE_WITH_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

#include "kernels/backend.h"
#include "kernels/cpu/capability.h"

namespace bitpare::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline void parallel_for(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
  at::parallel_for(begin, end, grain, [&](int64_t b, int64_t e) { body(context, b, e); });
}

struct Cpu {
  // Values can be read without a synchronisation.
  static constexpr bool kSeesValues = true;

  static void require(const char*, const Tensor&) {}

  template <class F>
  static void run(const Tensor&, F f) {
    on_cpu(cpu_capability(), parallel_for, f);
  }
};

struct Cuda {
  static constexpr bool kSeesValues = false;

  static void require([[maybe_unused]] const char* op, [[maybe_unused]] const Tensor& x) {
#ifndef BITPARE_WITH_CUDA
    TORCH_CHECK(false, op, ": x is on ", x.device(),
                ", but this bitpare was built without CUDA. Rebuild it where nvcc is on PATH: "
                "BITPARE_CUDA=ON pip install --no-build-isolation --force-reinstall .");
#endif
  }

  template <class F>
  static void run([[maybe_unused]] const Tensor& x, [[maybe_unused]] F f) {
#ifdef BITPARE_WITH_CUDA
    c10::DeviceGuard guard(x.device());
    f(OnCuda{c10::cuda::getCurrentCUDAStream(x.device().index()).stream()});
#endif
  }
};

}  // namespace bitpare::ops
