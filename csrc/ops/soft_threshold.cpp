#include "kernels/soft_threshold.h"

#include <limits>

#include "ops/straight_through.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "soft_threshold";

// The arguments of `_soft_threshold`.
struct Options {
  const Tensor& x;
  double threshold;
  bool save_inside;
  at::MemoryFormat format;

  auto fields() const { return std::tie(x, threshold, save_inside, format); }
};

void check(const Options& o) {
  check_input(kOp, o.x);
  TORCH_CHECK(o.threshold >= 0 && o.threshold <= std::numeric_limits<float>::max(), kOp,
              ": threshold must be finite and 0 or more, got ", o.threshold);
  check_format(kOp, o.x, o.format, {});
}

template <class Device>
std::tuple<Tensor, Tensor> forward(const Options& o) {
  Device::require(kOp, o.x);
  check(o);
  Tensor source = o.x.contiguous(o.format), y = at::empty_like(source);
  Tensor inside = new_bits(source, o.save_inside);
  SoftThreshold args = {
      .x = source.const_data_ptr(),
      .y = y.data_ptr(),
      .inside = o.save_inside ? static_cast<uint64_t*>(inside.data_ptr()) : nullptr,
      .n = o.x.numel(),
      .dtype = dtype_of(kOp, o.x),
      .threshold = static_cast<float>(o.threshold),
  };
  Device::run(o.x, [&](const auto& where) { bitpare::soft_threshold(args, where); });
  return {y, inside};
}

std::tuple<Tensor, Tensor> forward_meta(const Options& o) {
  check(o);
  return {at::empty_like(o.x, o.x.options(), o.format), new_bits(o.x, o.save_inside)};
}

Tensor run(const Tensor& x, double threshold, bool differentiable) {
  check_input(kOp, x);
  Options options = {
      .x = x,
      .threshold = threshold,
      .save_inside = differentiable,
      .format = x.suggest_memory_format(),
  };
  auto run_below = [&] {
    static auto op = find_op<decltype(forward_meta)>("bitpare::_soft_threshold");
    return call(op, options);
  };
  return differentiable ? with_straight_through(x, options.format, run_below)
                        : std::get<0>(run_below());
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
