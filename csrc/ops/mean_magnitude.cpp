#include "ops/mean_magnitude.h"

#include "kernels/mean_magnitude.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "mean_magnitude";

void check(const Tensor& x, const OptionalTensor& threshold, const Granularity& granularity) {
  check_input(kOp, x);
  check_granularity(kOp, x, granularity);
  check_threshold(kOp, x, threshold, granularity);
}

template <class Device>
Tensor body(const Tensor& x, const OptionalTensor& threshold, std::optional<int64_t> axis,
            std::optional<int64_t> group) {
  Device::require(kOp, x);
  Granularity granularity = {axis, group};
  check(x, threshold, granularity);
  at::MemoryFormat format = format_of(x, granularity);
  Tensor source = x.contiguous(format);
  Array<float> above(threshold);
  auto options = x.options().dtype(at::kFloat).memory_format(std::nullopt);
  Tensor result = at::empty_symint(scale_shape(x, granularity), options);
  ReduceLayout layout = layout_of(x, granularity, format);
  Tensor partial = new_partial(x, layout, kMagnitudeTerms);
  MeanMagnitude args = {
      .x = source.const_data_ptr(),
      .dtype = dtype_of(kOp, x),
      .threshold = above.data(),
      .layout = layout,
      .partial = partial.data_ptr<float>(),
      .mean = result.data_ptr<float>(),
  };
  Device::run(x, [&](const auto& where) { bitpare::mean_magnitude(args, where); });
  return result;
}

Tensor meta(const Tensor& x, const OptionalTensor& threshold, std::optional<int64_t> axis,
            std::optional<int64_t> group) {
  check(x, threshold, {axis, group});
  return at::empty_symint(scale_shape(x, {axis, group}),
                          x.options().dtype(at::kFloat).memory_format(std::nullopt));
}

Tensor public_op(const Tensor& x, const OptionalTensor& threshold, std::optional<int64_t> axis,
                 std::optional<int64_t> group) {
  check_input(kOp, x);
  at::AutoDispatchBelowADInplaceOrView below;
  return mean_magnitude(x, threshold, {axis, group});
}

}  // namespace

void check_threshold(const char* op, const Tensor& x, const OptionalTensor& threshold,
                     const Granularity& granularity) {
  if (!threshold) return;
  TORCH_CHECK(threshold->scalar_type() == at::kFloat, op, ": threshold must be float32, got ",
              threshold->scalar_type());
  check_per_channel(op, "threshold", x, *threshold, granularity);
}

Tensor mean_magnitude(const Tensor& x, const OptionalTensor& threshold, const Granularity& g) {
  static auto op = find_op<decltype(meta)>("bitpare::_mean_magnitude");
  return op.call(x, threshold, g.axis, g.group);
}

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "mean_magnitude(Tensor x, Tensor? threshold=None, *, int? axis=None, int? group=None) -> "
      "Tensor",
      tags());
  m.def("_mean_magnitude(Tensor x, Tensor? threshold, int? axis, int? group) -> Tensor", tags());
  composite(m, "mean_magnitude", public_op, public_op);
  kernels(m, "_mean_magnitude", body<Cpu>, body<Cuda>, meta);
  no_derivative(m, "_mean_magnitude");
}

}  // namespace bitpare::ops
