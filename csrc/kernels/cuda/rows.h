// Computes sums and maxima over one row by a block, in the order of math/reduce.h: the counterpart
// of kernels/cpu/rows.h. All threads of the block call these functions, and get the result.
#pragma once
#include "kernels/cuda/reduce.h"

namespace bitpare {
namespace {

constexpr int kMostRowWarps = 8;

// A warp takes a chunk at a time.
unsigned threads_for_row(int64_t n) {
  int64_t chunks = math::chunks_of(n);
  int64_t warps = chunks < 1 ? 1 : chunks < kMostRowWarps ? chunks : kMostRowWarps;
  return static_cast<unsigned>(warps * kWarp);
}

template <int kTerms>
struct SharedRow {
  float sums[kTerms];
  float most[kMostRowWarps];
};

// Returns the sum over a warp's lanes, added in lane 0's order on all of them.
__device__ inline float sum_of_warp(float x) {
  for (int half = kWarp / 2; half > 0; half /= 2) x += __shfl_xor_sync(0xffffffffu, x, half);
  return x;
}

// Sums the terms that f(i, terms) gives. partial: kTerms floats for each chunk, in global memory.
template <int kTerms, int kMost, class F>
__device__ inline void sum_row(SharedRow<kMost>& shared, int64_t n, float* partial, float* sums,
                               F f) {
  static_assert(kTerms <= kMost);
  int64_t chunks = math::chunks_of(n);
  int lane = threadIdx.x % kWarp;
  for (int64_t c = threadIdx.x / kWarp; c < chunks; c += blockDim.x / kWarp) {
    int64_t end = (c + 1) * kSumChunk < n ? (c + 1) * kSumChunk : n;
    float lanes[kTerms];
    for (int t = 0; t < kTerms; ++t) lanes[t] = 0.0f;
#pragma unroll 4
    for (int64_t i = c * kSumChunk + lane; i < end; i += kWarp) {
      float terms[kTerms];
      f(i, terms);
      for (int t = 0; t < kTerms; ++t) lanes[t] += terms[t];
    }
    for (int t = 0; t < kTerms; ++t) {
      float sum = sum_of_warp(lanes[t]);
      if (lane == 0) partial[t * chunks + c] = sum;
    }
  }
  __syncthreads();
  for (int t = threadIdx.x; t < kTerms; t += blockDim.x) {
    shared.sums[t] = math::fold_pairs<math::Sum>(t, partial + t * chunks, chunks, 1);
  }
  __syncthreads();
  for (int t = 0; t < kTerms; ++t) sums[t] = shared.sums[t];
  __syncthreads();
}

// The sum of an array.
template <int kMost>
__device__ inline float sum_of(SharedRow<kMost>& shared, const float* p, int64_t n,
                               float* partial) {
  float sum;
  sum_row<1>(shared, n, partial, &sum, [&](int64_t i, float* terms) { terms[0] = p[i]; });
  return sum;
}

// Returns the largest f(i), or -infinity if there is none. NaN is skipped.
template <int kMost, class F>
__device__ inline float greatest(SharedRow<kMost>& shared, int64_t n, F f) {
  float most = -__builtin_inff();
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    float x = f(i);
    most = x > most ? x : most;
  }
  for (int half = kWarp / 2; half > 0; half /= 2) {
    float other = __shfl_xor_sync(0xffffffffu, most, half);
    most = other > most ? other : most;
  }
  if (threadIdx.x % kWarp == 0) shared.most[threadIdx.x / kWarp] = most;
  __syncthreads();
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) {
    most = shared.most[w] > most ? shared.most[w] : most;
  }
  __syncthreads();
  return most;
}

}  // namespace
}  // namespace bitpare
