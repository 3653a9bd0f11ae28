#include "kernels/histogram_range.h"

#include "kernels/cpu/reduce.h"

namespace bitpare {
namespace {

void sum_up(const HistogramRange& args, int64_t row) {
  const int64_t* counts = args.counts + row * args.bins;
  int64_t first = row * (args.bins + 1);
  int64_t* below = args.below + first;
  below[0] = 0;
  for (int32_t b = 0; b < args.bins; ++b) below[b + 1] = below[b] + counts[b];
  if (args.method == RangeMethod::mse) {
    float total = static_cast<float>(below[args.bins]);
    float* share = args.share + row * args.bins;
    for (int32_t b = 0; b < args.bins; ++b) share[b] = static_cast<float>(counts[b]) / total;
  }
  if (args.method == RangeMethod::entropy) {
    int32_t* filled = args.filled + first;
    double* weight = args.weight + first;
    filled[0] = 0;
    weight[0] = 0;
    for (int32_t b = 0; b < args.bins; ++b) {
      filled[b + 1] = filled[b] + (counts[b] != 0);
      weight[b + 1] = weight[b] + math::weight_of(counts[b]);
    }
  }
}

// Lists the bins that hold values, in whole runs of lanes; empty bins would add nothing.
float mse_of(const HistogramRange& args, int64_t row, const math::Span& all,
             const math::Span& span) {
  math::Affine<Vec> a = splat_affine(math::affine_of_candidate(args, row, span));
  Vec low = math::splat<Vec>(args.rule.quant_min), high = math::splat<Vec>(args.rule.quant_max);
  const float* share = args.share + row * args.bins;
  int64_t half = args.bins / 2, begin = (half - all.down) / kSumLanes * kSumLanes;
  Vec sums[kLaneVectors] = {};
  for (int64_t b = begin; b < half + all.up; b += kSumLanes) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kLaneVectors; ++v) {
      int64_t first = b + v * kWidth;
      Vec bin = math::Value<Vec>::to_float(lane_numbers() + static_cast<int32_t>(first));
      sums[v] +=
          load(share + first) * math::squared_error(math::bin_centre(bin, args.bins), a, low, high);
    }
  }
  float lanes[kSumLanes];
  for (int64_t v = 0; v < kLaneVectors; ++v) store(lanes + v * kWidth, sums[v]);
  return math::fold_lanes<math::Sum>(0, lanes);
}

float entropy_of(const HistogramRange& args, const math::HistogramRow& r, const math::Span& span,
                 bool widest) {
  math::Divergence d = math::divergence_of_candidate(args, r, span);
  if (!widest && !math::fills_levels(args, d)) return __builtin_inff();
  float lanes[kSumLanes] = {};
  for (int32_t level = 0; level < d.levels; ++level) {
    lanes[level % kSumLanes] += math::divergence_of_level(r, d, level);
  }
  return math::divergence(d, math::fold_lanes<math::Sum>(0, lanes));
}

void price(const HistogramRange& args, int64_t row, int64_t first, int64_t last) {
  math::HistogramRow r = math::row_of(args, row);
  math::Span all = math::outermost(r, args.rule.symmetric);
  int32_t n = math::candidates_of(all);
  for (int64_t k = first + 1; k <= at_most(last, n); ++k) {
    math::Span span = math::shrunk(all, static_cast<int32_t>(k), n);
    args.cost[row * args.candidates + k - 1] = args.method == RangeMethod::mse
                                                   ? mse_of(args, row, all, span)
                                                   : entropy_of(args, r, span, k == n);
  }
}

void choose(const HistogramRange& args, int64_t row) {
  math::Choice best = {__builtin_inff(), 0};
  if (args.method != RangeMethod::percentile) {
    math::Span all = math::outermost(math::row_of(args, row), args.rule.symmetric);
    for (int64_t k = 1; k <= math::candidates_of(all); ++k) {
      float cost = args.cost[row * args.candidates + k - 1];
      best = math::better_of(best, math::priced(cost, k));
    }
  }
  math::Limits range = math::chosen_range(args, row, best);
  args.low[row] = range.low;
  args.high[row] = range.high;
}

}  // namespace

// Each core sums up rows, then computes the costs of candidates (each reads a row, which stays in
// the first cache), then picks the cheapest candidate of each row.
template <>
void histogram_range(const HistogramRange& args, const OnCpu<BITPARE_ISA>& cpu) {
  int64_t rows = kGrain / args.bins > 1 ? kGrain / args.bins : 1;
  parallel(cpu.parallel_for, args.n, rows, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) sum_up(args, row);
  });
  if (args.method != RangeMethod::percentile) {
    // Wide candidates cost more, so that neighbours go to different threads.
    int64_t each = at_most(args.candidates, 16), runs = args.candidates / each;
    parallel(cpu.parallel_for, args.n * runs, 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        price(args, task / runs, task % runs * each, (task % runs + 1) * each);
      }
    });
  }
  parallel(cpu.parallel_for, args.n, rows, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) choose(args, row);
  });
}

}  // namespace bitpare
