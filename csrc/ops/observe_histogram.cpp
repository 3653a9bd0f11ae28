#include "kernels/observe_histogram.h"

#include "ops/control.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "observe_histogram_";

struct Options {
  const Tensor& counts;
  const Tensor& limit;
  const Tensor& skipped;
  const Tensor& x;
  std::optional<int64_t> axis;

  auto fields() const { return std::tie(counts, limit, skipped, x, axis); }
};

void check_histogram(const char* name, const Tensor& state, at::ScalarType type) {
  TORCH_CHECK(state.scalar_type() == type, kOp, ": ", name, " must be ",
              type == at::kLong ? "int64" : "float32", ", got ", state.scalar_type());
  TORCH_CHECK(state.is_contiguous(), kOp, ": ", name, " must be contiguous, got strides ",
              state.sym_strides());
}

void check(const Options& o) {
  const Tensor &counts = o.counts, &x = o.x;
  std::optional<int64_t> axis = o.axis;
  check_input(kOp, x);
  check_granularity(kOp, x, {axis, std::nullopt});
  check_histogram("counts", counts, at::kLong);
  check_histogram("limit", o.limit, at::kFloat);
  check_histogram("skipped", o.skipped, at::kLong);
  c10::SymInt n = axis ? x.sym_size(*axis) : c10::SymInt(1);
  TORCH_CHECK(counts.dim() == 2 && counts.sym_size(0) == n, kOp, ": counts must have shape [", n,
              ", bins]", axis ? " (channels of x along axis)" : "", ", got ", counts.sym_sizes());
  for (auto [name, state] : {std::pair("limit", &o.limit), std::pair("skipped", &o.skipped)}) {
    TORCH_CHECK(state->dim() == 1 && state->sym_size(0) == n, kOp, ": ", name, " must have shape [",
                n, "], got ", state->sym_sizes());
  }
  int64_t bins = counts.size(1);
  TORCH_CHECK(bins >= kLeastBins && bins <= kMostBins && (bins & (bins - 1)) == 0, kOp,
              ": bins of counts must be a power of two in [", kLeastBins, ", ", kMostBins,
              "], got ", bins);
}

void check_limits(const Tensor& limit) {
  const float* values = limit.const_data_ptr<float>();
  for (int64_t i = 0; i < limit.numel(); ++i) {
    float v = values[i];
    bool fits = v >= math::kLeastPower && v <= math::kMostPower && math::power_of_two_over(v) == v;
    TORCH_CHECK(v == 0.0f || fits, kOp, ": limit must be 0 or a power of two, got ", v,
                " at index ", i);
  }
}

// If there are fewer channels than threads, threads share channels, provided that bins are few
// compared with the values.
int64_t slots_for(const ReduceLayout& l, int64_t n, int64_t bins) {
  int64_t threads = at::get_num_threads();
  if (l.channels == 0 || l.channels >= threads) return 1;
  return std::clamp<int64_t>(n / (8 * l.channels * bins), 1, threads);
}

template <class Device>
void body(const Options& o) {
  const Tensor &counts = o.counts, &limit = o.limit, &x = o.x;
  Device::require(kOp, x);
  check(o);
  if (Device::kSeesValues) check_limits(limit);
  Granularity granularity = {o.axis, std::nullopt};
  at::MemoryFormat format = format_of(x, granularity);
  ReduceLayout layout = layout_of(x, granularity, format);
  Tensor source = x.contiguous(format);
  Tensor partial = new_partial(x, layout, kLargestTerms);
  ObserveHistogram args = {};
  args.x = source.const_data_ptr();
  args.dtype = dtype_of(kOp, x);
  args.layout = layout;
  args.counts = counts.data_ptr<int64_t>();
  args.limit = limit.data_ptr<float>();
  args.skipped = o.skipped.data_ptr<int64_t>();
  args.bins = static_cast<int32_t>(counts.size(1));
  args.partial = partial.data_ptr<float>();
  args.slots = Device::kSeesValues ? slots_for(layout, x.numel(), args.bins) : 1;
  Tensor shares = at::empty({(args.slots - 1) * counts.numel()}, counts.options());
  Tensor largest = at::empty({Device::kSeesValues ? 0 : layout.channels}, limit.options());
  args.shares = shares.data_ptr<int64_t>();
  args.largest = largest.data_ptr<float>();
  Device::run(x, [&](const auto& where) { bitpare::observe_histogram(args, where); });
}

void note_written(const Options& o) {
  for (const Tensor* state : {&o.counts, &o.limit, &o.skipped}) bump_version(*state);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "observe_histogram_(Tensor(a!) counts, Tensor(b!) limit, Tensor(c!) skipped, Tensor x, *, "
      "int? axis=None) -> ()",
      tags());
  kernels(m, "observe_histogram_", body<Cpu>, body<Cuda>, check);
  no_gradient(m, "observe_histogram_");
  writes<check, note_written>(m, "observe_histogram_");
}

}  // namespace bitpare::ops
