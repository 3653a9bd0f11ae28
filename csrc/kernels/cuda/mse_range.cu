#include "kernels/cuda/reduce.h"
#include "kernels/mse_range.h"

namespace bitpare {
namespace {

__global__ void __launch_bounds__(kThreads) grid_kernel(MseRange args) {
  int64_t task = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  int64_t channels = args.layout.channels;
  if (task >= args.steps * channels) return;
  math::write_grid(args, task / channels + 1, task % channels);
}

// Sums are kept as [pieces, steps * channels], as of that many channels.
BITPARE_INLINE ReduceLayout layout_of_sums(const MseRange& args) {
  return {args.layout.outer, args.steps * args.layout.channels, args.layout.inner};
}

// A warp takes one chunk of one row and keeps it in registers while it prices every candidate.
template <class T>
__global__ void __launch_bounds__(kThreads) price_rows(MseRange args, const T* x) {
  constexpr int kEach = kSumChunk / kWarp;
  const ReduceLayout& l = args.layout;
  int64_t chunks = math::chunks_per_row(l);
  int64_t task = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) / kWarp;
  if (task >= math::pieces_of(l) * l.channels) return;
  int64_t row = task / chunks, chunk = task % chunks, lane = threadIdx.x % kWarp;
  int64_t channel = row % l.channels, piece = row / l.channels * chunks + chunk;
  int64_t first = chunk * kSumChunk + lane;
  float inverse_unit = math::inverse_unit_of(args, channel), values[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    int64_t i = first + e * kWarp;
    values[e] = i < l.inner ? to_float(x[row * l.inner + i]) * inverse_unit : 0.0f;
  }
  for (int64_t k = 1; k <= args.steps; ++k) {
    math::Affine<float> a = math::read_grid(args, k, channel);
    float sum = 0.0f;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      float error = math::squared_error(values[e], a, args.rule.quant_min, args.rule.quant_max);
      if (first + e * kWarp < l.inner) sum += error;
    }
    for (int half = kWarp / 2; half > 0; half /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, half);
    if (lane == 0) args.partial[(piece * args.steps + k - 1) * l.channels + channel] = sum;
  }
}

// A thread takes one channel of kSumRows rows, which stay in the caches from the first candidate
// on.
template <class T>
__global__ void __launch_bounds__(kThreads) price_columns(MseRange args, const T* x) {
  const ReduceLayout& l = args.layout;
  int64_t task = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (task >= math::pieces_of(l) * l.channels) return;
  int64_t piece = task / l.channels, channel = task % l.channels;
  int64_t end = (piece + 1) * kSumRows < l.outer ? (piece + 1) * kSumRows : l.outer;
  float inverse_unit = math::inverse_unit_of(args, channel);
  for (int64_t k = 1; k <= args.steps; ++k) {
    math::Affine<float> a = math::read_grid(args, k, channel);
    float sum = 0.0f;
#pragma unroll 8
    for (int64_t row = piece * kSumRows; row < end; ++row) {
      float value = to_float(x[row * l.channels + channel]) * inverse_unit;
      sum += math::squared_error(value, a, args.rule.quant_min, args.rule.quant_max);
    }
    args.partial[(piece * args.steps + k - 1) * l.channels + channel] = sum;
  }
}

// The whole sum of a candidate takes the place of its first piece.
struct StoreCost {
  float* cost;
  __device__ void operator()(int64_t i, const float* sums) const { cost[i] = sums[0]; }
};

// A thread takes one channel.
__global__ void __launch_bounds__(kThreads) choose_kernel(MseRange args) {
  int64_t channel = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (channel >= args.layout.channels) return;
  math::Choice best = {__builtin_inff(), 0};
#pragma unroll 8
  for (int64_t k = 1; k <= args.steps; ++k) {
    float cost = args.partial[(k - 1) * args.layout.channels + channel];
    best = math::better_of(best, math::priced(cost, k));
  }
  math::narrow_range(args, channel, best);
}

}  // namespace

// Reads x from memory once, then from the caches.
void mse_range(const MseRange& args, const OnCuda& cuda) {
  const ReduceLayout& l = args.layout;
  int64_t tasks = math::pieces_of(l) * l.channels;
  if (tasks == 0) return;
  launch(grid_kernel, blocks_for(args.steps * l.channels, kThreads), kThreads, cuda.stream, args);
  with_type(args.dtype, [&]<class T>(T*) {
    auto x = static_cast<const T*>(args.x);
    if (math::channels_innermost(l)) {
      launch(price_columns<T>, blocks_for(tasks, kThreads), kThreads, cuda.stream, args, x);
    } else {
      launch(price_rows<T>, blocks_for(tasks * kWarp, kThreads), kThreads, cuda.stream, args, x);
    }
  });
  finish<math::Sum, 1>(cuda, layout_of_sums(args), args.partial, StoreCost{args.partial});
  launch(choose_kernel, blocks_for(l.channels, kThreads), kThreads, cuda.stream, args);
}

}  // namespace bitpare
