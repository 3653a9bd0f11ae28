#include "kernels/cuda/reduce.h"
#include "kernels/histogram_range.h"

namespace bitpare {
namespace {

struct RunSums {
  int64_t count[kThreads];
  int32_t filled[kThreads];
};

// A block takes one row, a thread a run of its bins: the sum of each run, then the sums before it.
// Weights are floats, so one thread adds them in ascending order, the logarithms of all taken
// first.
__global__ void __launch_bounds__(kThreads) sum_up_kernel(HistogramRange args) {
  BITPARE_SHARED(RunSums, run);
  int64_t row = blockIdx.x, base = row * (args.bins + 1);
  const int64_t* counts = args.counts + row * args.bins;
  int32_t length = (args.bins + kThreads - 1) / kThreads;
  int32_t first = threadIdx.x * length;
  int32_t end = first + length < args.bins ? first + length : args.bins;
  int64_t count = 0;
  int32_t filled = 0;
  for (int32_t b = first; b < end; ++b) {
    count += counts[b];
    filled += counts[b] != 0;
    if (args.weight) args.weight[base + b + 1] = math::weight_of(counts[b]);
  }
  run.count[threadIdx.x] = count;
  run.filled[threadIdx.x] = filled;
  __syncthreads();
  count = 0;
  filled = 0;
  int64_t total = 0;
  for (int t = 0; t < kThreads; ++t) {
    if (t < static_cast<int>(threadIdx.x)) {
      count += run.count[t];
      filled += run.filled[t];
    }
    total += run.count[t];
  }
  for (int32_t b = first; b < end; ++b) {
    count += counts[b];
    filled += counts[b] != 0;
    args.below[base + b + 1] = count;
    if (args.filled) args.filled[base + b + 1] = filled;
    if (args.share) {
      args.share[row * args.bins + b] = static_cast<float>(counts[b]) / static_cast<float>(total);
    }
  }
  if (threadIdx.x != 0) return;
  args.below[base] = 0;
  if (args.filled) args.filled[base] = 0;
  if (!args.weight) return;
  double sum = 0;
  args.weight[base] = 0;
#pragma unroll 8
  for (int32_t b = 1; b <= args.bins; ++b) args.weight[base + b] = sum += args.weight[base + b];
}

BITPARE_INLINE float mse_terms(const HistogramRange& args, int64_t row, const math::Span& all,
                               const math::Span& span, int lane) {
  math::Affine<float> a = math::affine_of_candidate(args, row, span);
  const float* share = args.share + row * args.bins;
  int32_t half = args.bins / 2, begin = (half - all.down) / kWarp * kWarp;
  float sum = 0.0f;
  for (int32_t b = begin + lane; b < (half + all.up + kWarp - 1) / kWarp * kWarp; b += kWarp) {
    float centre = math::bin_centre(static_cast<float>(b), args.bins);
    sum += share[b] * math::squared_error(centre, a, args.rule.quant_min, args.rule.quant_max);
  }
  return sum;
}

// A warp takes one candidate of one row, a thread one lane of its sum.
__global__ void __launch_bounds__(kThreads) price_kernel(HistogramRange args) {
  int64_t task = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) / kWarp;
  int lane = threadIdx.x % kWarp;
  if (task >= args.n * args.candidates) return;
  int64_t row = task / args.candidates;
  int32_t k = static_cast<int32_t>(task % args.candidates) + 1;
  math::HistogramRow r = math::row_of(args, row);
  math::Span all = math::outermost(r, args.rule.symmetric);
  int32_t n = math::candidates_of(all);
  if (k > n) return;
  math::Span span = math::shrunk(all, k, n);
  bool by_error = args.method == RangeMethod::mse;
  math::Divergence d = math::divergence_of_candidate(args, r, span);
  bool worth = by_error || k == n || math::fills_levels(args, d);
  float sum = 0.0f;
  if (by_error) {
    sum = mse_terms(args, row, all, span, lane);
  } else if (worth) {
    for (int32_t level = lane; level < d.levels; level += kWarp) {
      sum += math::divergence_of_level(r, d, level);
    }
  }
  for (int half = kWarp / 2; half > 0; half /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, half);
  if (lane != 0) return;
  float cost = by_error ? sum : math::divergence(d, sum);
  args.cost[task] = worth ? cost : __builtin_inff();
}

struct Choices {
  math::Choice at[kThreads];
};

// A block takes one row.
__global__ void __launch_bounds__(kThreads) choose_kernel(HistogramRange args) {
  BITPARE_SHARED(Choices, shared);
  int64_t row = blockIdx.x;
  math::Choice best = {__builtin_inff(), 0};
  if (args.cost) {
    math::Span all = math::outermost(math::row_of(args, row), args.rule.symmetric);
    int32_t n = math::candidates_of(all);
    for (int32_t k = threadIdx.x + 1; k <= n; k += kThreads) {
      float cost = args.cost[row * args.candidates + k - 1];
      best = math::better_of(best, math::priced(cost, k));
    }
  }
  shared.at[threadIdx.x] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int t = 1; t < kThreads; ++t) best = math::better_of(best, shared.at[t]);
  math::Limits range = math::chosen_range(args, row, best);
  args.low[row] = range.low;
  args.high[row] = range.high;
}

}  // namespace

void histogram_range(const HistogramRange& args, const OnCuda& cuda) {
  if (args.n == 0) return;
  launch(sum_up_kernel, args.n, kThreads, cuda.stream, args);
  if (args.method != RangeMethod::percentile) {
    launch(price_kernel, blocks_for(args.n * args.candidates * kWarp, kThreads), kThreads,
           cuda.stream, args);
  }
  launch(choose_kernel, args.n, kThreads, cuda.stream, args);
}

}  // namespace bitpare
