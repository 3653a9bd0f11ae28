#include "kernels/histogram_range.h"

#include "ops/call.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "histogram_range";

using Range = std::tuple<Tensor, Tensor>;

struct Options {
  const Tensor& counts;
  const Tensor& limit;
  c10::string_view method;
  double percentile;
  int64_t quant_min, quant_max;
  bool symmetric;

  auto fields() const {
    return std::tie(counts, limit, method, percentile, quant_min, quant_max, symmetric);
  }
};

void check(const Options& o) {
  const Tensor &counts = o.counts, &limit = o.limit;
  TORCH_CHECK(counts.scalar_type() == at::kLong, kOp, ": counts must be int64, got ",
              counts.scalar_type());
  TORCH_CHECK(limit.scalar_type() == at::kFloat, kOp, ": limit must be float32, got ",
              limit.scalar_type());
  TORCH_CHECK(counts.dim() == 2, kOp, ": counts must have shape [n, bins], got ",
              counts.sym_sizes());
  TORCH_CHECK(limit.dim() == 1 && limit.sym_size(0) == counts.sym_size(0), kOp,
              ": limit must have shape [", counts.sym_size(0), "], got ", limit.sym_sizes());
  int64_t bins = counts.size(1);
  TORCH_CHECK(bins >= kLeastBins && bins <= kMostBins && (bins & (bins - 1)) == 0, kOp,
              ": bins of counts must be a power of two in [", kLeastBins, ", ", kMostBins,
              "], got ", bins);
  TORCH_CHECK(o.percentile > 0 && o.percentile <= 100, kOp,
              ": percentile must be in (0, 100], got ", o.percentile);
  check_grid(kOp, o.quant_min, o.quant_max);
  TORCH_CHECK(!o.symmetric || o.quant_max > 0, kOp,
              ": quant_max must be positive with symmetric=True, got ", o.quant_max);
}

void check_values(const Tensor& counts) {
  const int64_t* n = counts.const_data_ptr<int64_t>();
  int64_t bins = counts.size(1), most = std::numeric_limits<int64_t>::max() / bins;
  for (int64_t i = 0; i < counts.numel(); ++i) {
    TORCH_CHECK(n[i] >= 0 && n[i] <= most, kOp, ": counts must be from 0 to ", most, ", got ", n[i],
                " in bin ", i % bins, " of row ", i / bins);
  }
}

RangeMethod parse_method(c10::string_view name) {
  return static_cast<RangeMethod>(
      parse_name(kOp, "method", name, {"percentile", "mse", "entropy"}));
}

// The workspace of a method.
struct Scratch {
  Scratch(const Tensor& counts, HistogramRange* args) {
    bool by_error = args->method == RangeMethod::mse;
    bool by_entropy = args->method == RangeMethod::entropy;
    int64_t sums = args->n * (args->bins + 1);
    below = at::empty({sums}, counts.options());
    share = at::empty({by_error ? counts.numel() : 0}, counts.options().dtype(at::kFloat));
    filled = at::empty({by_entropy ? sums : 0}, counts.options().dtype(at::kInt));
    weight = at::empty({by_entropy ? sums : 0}, counts.options().dtype(at::kDouble));
    bool priced = by_error || by_entropy;
    cost = at::empty({priced ? args->n * args->candidates : 0}, share.options());
    args->below = below.data_ptr<int64_t>();
    args->share = by_error ? share.data_ptr<float>() : nullptr;
    args->filled = by_entropy ? filled.data_ptr<int32_t>() : nullptr;
    args->weight = by_entropy ? weight.data_ptr<double>() : nullptr;
    args->cost = priced ? cost.data_ptr<float>() : nullptr;
  }
  Tensor below, share, filled, weight, cost;
};

template <class Device>
Range body(const Options& o) {
  Device::require(kOp, o.counts);
  check(o);
  Tensor counts = o.counts.contiguous(), limit = o.limit.contiguous();
  if (Device::kSeesValues) check_values(counts);
  Tensor low = at::empty_like(limit), high = at::empty_like(limit);
  HistogramRange args = {};
  args.counts = counts.const_data_ptr<int64_t>();
  args.limit = limit.const_data_ptr<float>();
  args.low = low.data_ptr<float>();
  args.high = high.data_ptr<float>();
  args.n = counts.size(0);
  args.bins = static_cast<int32_t>(counts.size(1));
  args.method = parse_method(o.method);
  args.left_out = 1.0 - o.percentile / 100.0;
  args.rule = {.quant_min = static_cast<float>(o.quant_min),
               .quant_max = static_cast<float>(o.quant_max),
               .symmetric = o.symmetric};
  args.candidates = std::min(args.bins / 2, math::kMostCandidates);
  Scratch scratch(counts, &args);
  Device::run(counts, [&](const auto& where) { bitpare::histogram_range(args, where); });
  return {low, high};
}

Range meta(const Options& o) {
  check(o);
  parse_method(o.method);
  auto format = at::MemoryFormat::Contiguous;
  return {at::empty_like(o.limit, o.limit.options(), format),
          at::empty_like(o.limit, o.limit.options(), format)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "histogram_range(Tensor counts, Tensor limit, *, str method, float percentile=99.99, "
      "int quant_min, int quant_max, bool symmetric) -> (Tensor low, Tensor high)",
      tags());
  kernels(m, "histogram_range", body<Cpu>, body<Cuda>, meta);
  no_gradient(m, "histogram_range");
}

}  // namespace bitpare::ops
