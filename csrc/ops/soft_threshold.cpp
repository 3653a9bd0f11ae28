#include "kernels/soft_threshold.h"

#include <limits>

#include "ops/straight_through.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "soft_threshold";

using ForwardSignature = std::tuple<Tensor, Tensor>(const Tensor& x, double threshold,
                                                    bool save_inside,
                                                    at::MemoryFormat memory_format);

void check(const Tensor& x, double threshold, at::MemoryFormat format) {
  check_input(kOp, x);
  TORCH_CHECK(threshold >= 0 && threshold <= std::numeric_limits<float>::max(), kOp,
              ": threshold must be finite and 0 or more, got ", threshold);
  check_format(kOp, x, format, {});
}

template <class Device>
std::tuple<Tensor, Tensor> forward(const Tensor& x, double threshold, bool save_inside,
                                   at::MemoryFormat format) {
  Device::require(kOp, x);
  check(x, threshold, format);
  Tensor source = x.contiguous(format), y = at::empty_like(source);
  Tensor inside = new_bits(source, save_inside);
  SoftThreshold args = {source.const_data_ptr(),
                        y.data_ptr(),
                        save_inside ? static_cast<uint64_t*>(inside.data_ptr()) : nullptr,
                        x.numel(),
                        dtype_of(kOp, x),
                        static_cast<float>(threshold)};
  Device::run(x, [&](const auto& where) { bitpare::soft_threshold(args, where); });
  return {y, inside};
}

std::tuple<Tensor, Tensor> forward_meta(const Tensor& x, double threshold, bool save_inside,
                                        at::MemoryFormat format) {
  check(x, threshold, format);
  return {at::empty_like(x, x.options(), format), new_bits(x, save_inside)};
}

Tensor run(const Tensor& x, double threshold, bool differentiable) {
  check_input(kOp, x);
  at::MemoryFormat format = x.suggest_memory_format();
  auto call = [&](bool save_inside) {
    static auto op = find_op<ForwardSignature>("bitpare::_soft_threshold");
    return op.call(x, threshold, save_inside, format);
  };
  if (!differentiable) return std::get<0>(call(false));
  return with_straight_through(x, format, [&] { return call(true); });
}

Tensor without_gradient(const Tensor& x, double threshold) { return run(x, threshold, false); }

Tensor autograd(const Tensor& x, double threshold) {
  if (needs_gradient(x)) return run(x, threshold, true);
  at::AutoDispatchBelowADInplaceOrView below;
  return run(x, threshold, false);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def("soft_threshold(Tensor x, float threshold) -> Tensor", tags());
  m.def(
      "_soft_threshold(Tensor x, float threshold, bool save_inside, MemoryFormat memory_format) -> "
      "(Tensor, Tensor)",
      tags());
  composite(m, "soft_threshold", without_gradient, autograd);
  kernels(m, "_soft_threshold", forward<Cpu>, forward<Cuda>, forward_meta);
  no_derivative(m, "_soft_threshold");
}

}  // namespace bitpare::ops
