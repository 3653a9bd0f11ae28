// Chooses the range of a quantizer from a histogram.
#pragma once
#include "kernels/backend.h"
#include "math/histogram.h"

namespace bitpare {

// counts: [n, bins]. limit, low, high: [n]; low and high are +inf and -inf where counts are empty.
// left_out: the share of values that may lie outside, for percentile.
// Scratch: below: [n, bins + 1]. For mse, share: [n, bins]; for entropy, filled and weight:
// [n, bins + 1]; for both, cost: [n, candidates], with candidates = min(bins / 2, kMostCandidates).
struct HistogramRange {
  const int64_t* counts;
  const float* limit;
  float* low;
  float* high;
  int64_t n;
  int32_t bins;
  RangeMethod method;
  double left_out;
  RangeRule rule;
  int64_t* below;
  float* share;
  int32_t* filled;
  double* weight;
  float* cost;
  int32_t candidates;
};

template <class Isa>
void histogram_range(const HistogramRange& args, const OnCpu<Isa>& cpu);
void histogram_range(const HistogramRange& args, const OnCuda& cuda);

namespace math {

BITPARE_INLINE HistogramRow row_of(const HistogramRange& args, int64_t row) {
  int64_t first = row * (args.bins + 1);
  return {args.below + first, args.filled ? args.filled + first : nullptr,
          args.weight ? args.weight + first : nullptr, args.bins};
}

// A symmetric grid without negative codes has no levels below 0, so the span is cut there.
BITPARE_INLINE Divergence divergence_of_candidate(const HistogramRange& args, const HistogramRow& r,
                                                  Span span) {
  if (args.rule.symmetric && args.rule.quant_min >= 0.0f) span.down = 0;
  return divergence_of(r, span,
                       static_cast<int32_t>(args.rule.quant_max - args.rule.quant_min) + 1);
}

// Returns whether a span fills the levels of the grid: with fewer bins than levels, only the values
// outside are lost.
BITPARE_INLINE bool fills_levels(const HistogramRange& args, const Divergence& d) {
  return static_cast<float>(d.levels) > args.rule.quant_max - args.rule.quant_min;
}

// The grid of a candidate, for values in units of the limit.
BITPARE_INLINE Affine<float> affine_of_candidate(const HistogramRange& args, int64_t row,
                                                 const Span& span) {
  float limit = args.limit[row];
  Limits range = limits_of(span, limit, args.bins);
  return affine_of_range(range.low, range.high, limit, args.rule);
}

// The range of a row, from its running sums and, but for percentile, the best candidate.
BITPARE_INLINE Limits chosen_range(const HistogramRange& args, int64_t row, const Choice& best) {
  HistogramRow r = row_of(args, row);
  if (total_of(r) <= 0) return {__builtin_inff(), -__builtin_inff()};
  bool symmetric = args.rule.symmetric;
  if (args.method == RangeMethod::percentile) {
    return limits_of(percentile_span(r, args.left_out, symmetric), args.limit[row], args.bins);
  }
  Span all = outermost(r, symmetric);
  Span span = shrunk(all, static_cast<int32_t>(best.k), candidates_of(all));
  return limits_of(span, args.limit[row], args.bins);
}

}  // namespace math
}  // namespace bitpare
