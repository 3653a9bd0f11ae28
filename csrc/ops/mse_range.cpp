#include "kernels/mse_range.h"

#include "kernels/minmax.h"
#include "ops/call.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "mse_range";
constexpr int64_t kMostSteps = 4096;

using Range = std::tuple<Tensor, Tensor>;

struct Options {
  const Tensor& x;
  int64_t quant_min, quant_max;
  bool symmetric;
  std::optional<int64_t> axis;
  int64_t steps;

  auto fields() const { return std::tie(x, quant_min, quant_max, symmetric, axis, steps); }
};

void check(const Options& o) {
  check_input(kOp, o.x);
  check_granularity(kOp, o.x, {o.axis, std::nullopt});
  check_grid(kOp, o.quant_min, o.quant_max);
  TORCH_CHECK(!o.symmetric || o.quant_max > 0, kOp,
              ": quant_max must be positive with symmetric=True, got ", o.quant_max);
  TORCH_CHECK(o.steps >= 1 && o.steps <= kMostSteps, kOp, ": steps must be in [1, ", kMostSteps,
              "], got ", o.steps);
}

Tensor new_limits(const Options& o) {
  return at::empty_symint(scale_shape(o.x, {o.axis, std::nullopt}),
                          o.x.options().dtype(at::kFloat).memory_format(std::nullopt));
}

// Like layout_of, with one channel as one row.
ReduceLayout rows_of(const Tensor& x, const Granularity& granularity, at::MemoryFormat format) {
  ReduceLayout l = layout_of(x, granularity, format);
  return l.channels == 1 ? ReduceLayout{1, 1, l.outer * l.inner} : l;
}

template <class Device>
Range body(const Options& o) {
  Device::require(kOp, o.x);
  check(o);
  Granularity granularity = {o.axis, std::nullopt};
  at::MemoryFormat format = format_of(o.x, granularity);
  Tensor source = o.x.contiguous(format), low = new_limits(o), high = at::empty_like(low);
  ReduceLayout layout = rows_of(o.x, granularity, format);
  Tensor grids = at::empty({layout::mse_floats(o.steps, layout.channels)}, low.options());
  Tensor partial = new_partial(o.x, layout, std::max<int64_t>(o.steps, kMinMaxTerms));
  MseRange args = {
      .x = source.const_data_ptr(),
      .dtype = dtype_of(kOp, o.x),
      .layout = layout,
      .low = low.data_ptr<float>(),
      .high = high.data_ptr<float>(),
      .rule = {.quant_min = static_cast<float>(o.quant_min),
               .quant_max = static_cast<float>(o.quant_max),
               .symmetric = o.symmetric},
      .steps = o.steps,
      .grids = grids.data_ptr<float>(),
      .partial = partial.data_ptr<float>(),
  };
  MinMaxOf range = {};
  range.x = args.x;
  range.dtype = args.dtype;
  range.layout = args.layout;
  range.partial = args.partial;
  range.low = args.low;
  range.high = args.high;
  Device::run(o.x, [&](const auto& where) {
    bitpare::minmax(range, where);
    bitpare::mse_range(args, where);
  });
  return {low, high};
}

Range meta(const Options& o) {
  check(o);
  Tensor low = new_limits(o);
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
