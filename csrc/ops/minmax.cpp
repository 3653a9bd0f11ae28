#include "kernels/minmax.h"

#include "ops/call.h"

namespace bitpare::ops {
namespace {

using Range = std::tuple<Tensor, Tensor>;
using RangeAndCounts = std::tuple<Tensor, Tensor, Tensor>;

// The histogram's limits and number of bins.
struct Bins {
  Tensor low, high;
  int64_t count = 0;
};

// A thread counts into bins of its own if the bins are few compared with the values.
int64_t slots_for(int64_t n, int64_t bins) {
  if (bins == 0) return 1;
  return std::clamp<int64_t>(n / (8 * bins), 1, at::get_num_threads());
}

template <class Device>
RangeAndCounts run(const char* op, const Tensor& x, std::optional<int64_t> axis, const Bins* bins) {
  Granularity granularity = {axis, std::nullopt};
  at::MemoryFormat format = format_of(x, granularity);
  ReduceLayout layout = layout_of(x, granularity, format);
  Tensor source = x.contiguous(format);
  auto options = x.options().dtype(at::kFloat).memory_format(std::nullopt);
  Tensor low = at::empty_symint(scale_shape(x, granularity), options);
  Tensor high = at::empty_like(low);
  Tensor partial = new_partial(x, layout, kMinMaxTerms);
  MinMaxOf args = {};
  args.x = source.const_data_ptr();
  args.dtype = dtype_of(op, x);
  args.layout = layout;
  args.partial = partial.data_ptr<float>();
  args.low = low.data_ptr<float>();
  args.high = high.data_ptr<float>();
  Tensor counts;
  if (bins) {
    args.slots = Device::kSeesValues ? slots_for(x.numel(), layout.channels * bins->count) : 1;
    counts = at::zeros({args.slots, layout.channels, bins->count}, options.dtype(at::kLong));
    args.counts = counts.data_ptr<int64_t>();
    args.histogram_low = bins->low.const_data_ptr<float>();
    args.histogram_high = bins->high.const_data_ptr<float>();
    args.bins = static_cast<int32_t>(bins->count);
  }
  Device::run(x, [&](const auto& where) { bitpare::minmax(args, where); });
  if (bins)
    counts = counts.sum(0).view(axis ? at::IntArrayRef({layout.channels, bins->count})
                                     : at::IntArrayRef({bins->count}));
  return {low, high, counts};
}

void check(const char* op, const Tensor& x, std::optional<int64_t> axis) {
  check_input(op, x);
  check_granularity(op, x, {axis, std::nullopt});
}

void check_bins(const Tensor& x, const Tensor& low, const Tensor& high, int64_t bins,
                std::optional<int64_t> axis) {
  check("minmax_histogram", x, axis);
  TORCH_CHECK(bins >= 1 && bins <= (1 << 20), "minmax_histogram: bins must be in [1, ", 1 << 20,
              "], got ", bins);
  for (auto [name, limit] : {std::pair("low", &low), std::pair("high", &high)}) {
    TORCH_CHECK(limit->scalar_type() == at::kFloat, "minmax_histogram: ", name,
                " must be float32, got ", limit->scalar_type());
    check_per_channel("minmax_histogram", name, x, *limit, {axis, std::nullopt});
  }
}

template <class Device>
Range minmax(const Tensor& x, std::optional<int64_t> axis) {
  Device::require("minmax", x);
  check("minmax", x, axis);
  auto [low, high, none] = run<Device>("minmax", x, axis, nullptr);
  return {low, high};
}

template <class Device>
RangeAndCounts minmax_histogram(const Tensor& x, const Tensor& low, const Tensor& high,
                                int64_t bins, std::optional<int64_t> axis) {
  Device::require("minmax_histogram", x);
  check_bins(x, low, high, bins, axis);
  Bins wanted = {low.contiguous(), high.contiguous(), bins};
  return run<Device>("minmax_histogram", x, axis, &wanted);
}

Range minmax_meta(const Tensor& x, std::optional<int64_t> axis) {
  check("minmax", x, axis);
  Tensor low = at::empty_symint(scale_shape(x, {axis, std::nullopt}),
                                x.options().dtype(at::kFloat).memory_format(std::nullopt));
  return {low, at::empty_like(low)};
}

RangeAndCounts histogram_meta(const Tensor& x, const Tensor& low, const Tensor& high, int64_t bins,
                              std::optional<int64_t> axis) {
  check_bins(x, low, high, bins, axis);
  auto [least, most] = minmax_meta(x, axis);
  c10::SymDimVector shape = scale_shape(x, {axis, std::nullopt});
  shape.push_back(bins);
  return {least, most, at::empty_symint(shape, least.options().dtype(at::kLong))};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def("minmax(Tensor x, *, int? axis=None) -> (Tensor min, Tensor max)", tags());
  m.def(
      "minmax_histogram(Tensor x, Tensor low, Tensor high, *, int bins=2048, int? axis=None) -> "
      "(Tensor min, Tensor max, Tensor counts)",
      tags());
  kernels(m, "minmax", minmax<Cpu>, minmax<Cuda>, minmax_meta);
  no_gradient(m, "minmax");
  kernels(m, "minmax_histogram", minmax_histogram<Cpu>, minmax_histogram<Cuda>, histogram_meta);
  no_gradient(m, "minmax_histogram");
}

}  // namespace bitpare::ops
