#include "kernels/mse_range.h"

#include "kernels/minmax.h"
#include "ops/call.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "mse_range";
constexpr int64_t kMostSteps = 4096;

using Range = std::tuple<Tensor, Tensor>;

void check(const Tensor& x, int64_t quant_min, int64_t quant_max, bool symmetric,
           std::optional<int64_t> axis, int64_t steps) {
  check_input(kOp, x);
  check_granularity(kOp, x, {axis, std::nullopt});
  check_grid(kOp, quant_min, quant_max);
  TORCH_CHECK(!symmetric || quant_max > 0, kOp,
              ": quant_max must be positive with symmetric=True, got ", quant_max);
  TORCH_CHECK(steps >= 1 && steps <= kMostSteps, kOp, ": steps must be in [1, ", kMostSteps,
              "], got ", steps);
}

// Like layout_of, with one channel as one row.
ReduceLayout rows_of(const Tensor& x, const Granularity& granularity, at::MemoryFormat format) {
  ReduceLayout l = layout_of(x, granularity, format);
  return l.channels == 1 ? ReduceLayout{1, 1, l.outer * l.inner} : l;
}

template <class Device>
Range body(const Tensor& x, int64_t quant_min, int64_t quant_max, bool symmetric,
           std::optional<int64_t> axis, int64_t steps) {
  Device::require(kOp, x);
  check(x, quant_min, quant_max, symmetric, axis, steps);
  Granularity granularity = {axis, std::nullopt};
  at::MemoryFormat format = format_of(x, granularity);
  Tensor source = x.contiguous(format);
  auto options = x.options().dtype(at::kFloat).memory_format(std::nullopt);
  Tensor low = at::empty_symint(scale_shape(x, granularity), options);
  Tensor high = at::empty_like(low);
  MseRange args = {};
  args.x = source.const_data_ptr();
  args.dtype = dtype_of(kOp, x);
  args.layout = rows_of(x, granularity, format);
  args.low = low.data_ptr<float>();
  args.high = high.data_ptr<float>();
  args.rule = {static_cast<float>(quant_min), static_cast<float>(quant_max), symmetric, false};
  args.steps = steps;
  Tensor grids = at::empty({layout::mse_floats(steps, args.layout.channels)}, options);
  Tensor partial = new_partial(x, args.layout, std::max<int64_t>(steps, kMinMaxTerms));
  args.grids = grids.data_ptr<float>();
  args.partial = partial.data_ptr<float>();
  MinMaxOf range = {};
  range.x = args.x;
  range.dtype = args.dtype;
  range.layout = args.layout;
  range.partial = args.partial;
  range.low = args.low;
  range.high = args.high;
  Device::run(x, [&](const auto& where) {
    bitpare::minmax(range, where);
    bitpare::mse_range(args, where);
  });
  return {low, high};
}

Range meta(const Tensor& x, int64_t quant_min, int64_t quant_max, bool symmetric,
           std::optional<int64_t> axis, int64_t steps) {
  check(x, quant_min, quant_max, symmetric, axis, steps);
  Tensor low = at::empty_symint(scale_shape(x, {axis, std::nullopt}),
                                x.options().dtype(at::kFloat).memory_format(std::nullopt));
  return {low, at::empty_like(low)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "mse_range(Tensor x, *, int quant_min, int quant_max, bool symmetric=True, int? axis=None, "
      "int steps=100) -> (Tensor low, Tensor high)",
      tags());
  kernels(m, "mse_range", body<Cpu>, body<Cuda>, meta);
  no_gradient(m, "mse_range");
}

}  // namespace bitpare::ops
