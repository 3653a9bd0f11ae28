// Reductions in the fixed order of math/reduce.h: the counterpart of kernels/cpu/reduce.h.
#pragma once
#include "kernels/cuda/blocks.h"
#include "math/reduce.h"

namespace bitpare {
namespace {

constexpr int kWarp = 32;
static_assert(kWarp == kSumLanes, "a warp holds the lanes of one chunk");

// The position and channel values of the element that a formula works on.
struct Lane {
  math::Affine<float> affine;
  int64_t channel;
};

template <class Rule, int kTerms, class Out, class F, class... In>
BITPARE_INLINE void accumulate(const Lane& lane, int64_t i, const F& f, float* sums, Out* y,
                               const In*... x) {
  float values[] = {to_float(x[i])...}, terms[kTerms];
  float result = f(lane, terms, values);
  if (y) from_float(result, y + i);
  for (int t = 0; t < kTerms; ++t) sums[t] = Rule::template combine<float>(t, sums[t], terms[t]);
}

// y[i] = f(lane, terms, values). A warp takes one chunk of one row: 32 neighbours at a time, each
// thread one lane of the sum, folded by shuffles at the end.
template <class Rule, int kTerms, class Out, class F, class... In>
__global__ void __launch_bounds__(kThreads)
    reduce_rows(Quantizer q, ReduceLayout layout, float* partial, F f, Out* y, const In*... x) {
  int64_t chunks = math::chunks_per_row(layout), pieces = math::pieces_of(layout);
  int64_t task = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) / kWarp;
  if (task >= pieces * layout.channels) return;
  int64_t row = task / chunks, chunk = task % chunks;
  int64_t channel = row % layout.channels, piece = row / layout.channels * chunks + chunk;
  int64_t begin = row * layout.inner + chunk * kSumChunk;
  int64_t left = layout.inner - chunk * kSumChunk;
  int64_t count = left < kSumChunk ? left : kSumChunk;
  Lane lane = {math::affine_of_channel(q, channel), channel};
  float sums[kTerms];
  for (int t = 0; t < kTerms; ++t) sums[t] = Rule::template identity<float>(t);
#pragma unroll 8
  for (int64_t j = threadIdx.x % kWarp; j < count; j += kWarp) {
    accumulate<Rule, kTerms>(lane, begin + j, f, sums, y, x...);
  }
  for (int t = 0; t < kTerms; ++t) {
    for (int half = kWarp / 2; half > 0; half /= 2) {
      float other = __shfl_xor_sync(0xffffffffu, sums[t], half);
      sums[t] = Rule::template combine<float>(t, sums[t], other);
    }
    if (threadIdx.x % kWarp == 0) {
      partial[(t * pieces + piece) * layout.channels + channel] = sums[t];
    }
  }
}

// A thread takes one channel of kSumRows rows, so that neighbours read neighbours.
template <class Rule, int kTerms, class Out, class F, class... In>
__global__ void __launch_bounds__(kThreads)
    reduce_columns(Quantizer q, ReduceLayout layout, float* partial, F f, Out* y, const In*... x) {
  int64_t pieces = math::pieces_of(layout), channels = layout.channels;
  int64_t task = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (task >= pieces * channels) return;
  int64_t piece = task / channels, channel = task % channels;
  int64_t end = (piece + 1) * kSumRows < layout.outer ? (piece + 1) * kSumRows : layout.outer;
  Lane lane = {math::affine_of_channel(q, channel), channel};
  float sums[kTerms];
  for (int t = 0; t < kTerms; ++t) sums[t] = Rule::template identity<float>(t);
#pragma unroll 8
  for (int64_t row = piece * kSumRows; row < end; ++row) {
    accumulate<Rule, kTerms>(lane, row * channels + channel, f, sums, y, x...);
  }
  for (int t = 0; t < kTerms; ++t) partial[(t * pieces + piece) * channels + channel] = sums[t];
}

template <int kTerms>
struct SharedFold {
  float at[kTerms][kThreads];
};

// Folds one channel's terms over its pieces by a block; the sums are valid in its first thread.
// Each thread folds a run of pieces whose length is a power of two, which is a subtree of the
// whole; the block then folds the runs.
template <class Rule, int kTerms>
__device__ inline void fold_channel(SharedFold<kTerms>& shared, int64_t pieces, int64_t channels,
                                    int64_t channel, float* partial, float* sums) {
  int64_t run = 1;
  while (run * kThreads < pieces) run *= 2;
  int64_t first = threadIdx.x * run;
  int64_t count = first < pieces ? (first + run < pieces ? run : pieces - first) : 0;
  for (int t = 0; t < kTerms; ++t) {
    float* values = partial + (t * pieces + first) * channels + channel;
    shared.at[t][threadIdx.x] = math::fold_pairs<Rule>(t, values, count, channels);
  }
  __syncthreads();
  int runs = static_cast<int>((pieces + run - 1) / run);
  for (int step = 1; step < runs; step *= 2) {
    int i = static_cast<int>(threadIdx.x) * 2 * step;
    if (i + step < runs) {
      for (int t = 0; t < kTerms; ++t) {
        shared.at[t][i] = Rule::template combine<float>(t, shared.at[t][i], shared.at[t][i + step]);
      }
    }
    __syncthreads();
  }
  for (int t = 0; t < kTerms; ++t) sums[t] = shared.at[t][0];
}

// Calls finish(channel, sums) with each term folded over its pieces. Each block takes one channel.
template <class Rule, int kTerms, class Finish>
__global__ void __launch_bounds__(kThreads)
    finish_channels(ReduceLayout layout, float* partial, Finish finish) {
  BITPARE_SHARED(SharedFold<kTerms>, shared);
  float sums[kTerms];
  fold_channel<Rule, kTerms>(shared, math::pieces_of(layout), layout.channels, blockIdx.x, partial,
                             sums);
  if (threadIdx.x == 0) finish(blockIdx.x, sums);
}

// The same if there are few pieces, as for weights and groups: each thread takes one channel.
template <class Rule, int kTerms, class Finish>
__global__ void __launch_bounds__(kThreads)
    finish_few_pieces(ReduceLayout layout, float* partial, Finish finish) {
  int64_t pieces = math::pieces_of(layout), channels = layout.channels;
  int64_t channel = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (channel >= channels) return;
  float sums[kTerms];
  for (int t = 0; t < kTerms; ++t) {
    float* values = partial + t * pieces * channels + channel;
    sums[t] = math::fold_pairs<Rule>(t, values, pieces, channels);
  }
  finish(channel, sums);
}

constexpr int64_t kFewPieces = 8;

// Calls finish(channel, sums) for each channel, after its pieces.
template <class Rule, int kTerms, class Finish>
void finish(const OnCuda& cuda, const ReduceLayout& layout, float* partial, Finish f) {
  if (math::pieces_of(layout) <= kFewPieces) {
    launch(finish_few_pieces<Rule, kTerms, Finish>, blocks_for(layout.channels, kThreads), kThreads,
           cuda.stream, layout, partial, f);
  } else {
    launch(finish_channels<Rule, kTerms, Finish>, layout.channels, kThreads, cuda.stream, layout,
           partial, f);
  }
}

template <class Rule, int kTerms, class Finish, class Out, class F, class... In>
void reduce(const OnCuda& cuda, const Quantizer& q, const ReduceLayout& layout, float* partial,
            Finish finish, F f, Out* y, const In*... x) {
  int64_t tasks = math::pieces_of(layout) * layout.channels;
  if (layout.channels == 0) return;
  if (tasks > 0 && math::channels_innermost(layout)) {
    launch(reduce_columns<Rule, kTerms, Out, F, In...>, blocks_for(tasks, kThreads), kThreads,
           cuda.stream, q, layout, partial, f, y, x...);
  } else if (tasks > 0) {
    launch(reduce_rows<Rule, kTerms, Out, F, In...>, blocks_for(tasks * kWarp, kThreads), kThreads,
           cuda.stream, q, layout, partial, f, y, x...);
  }
  bitpare::finish<Rule, kTerms>(cuda, layout, partial, finish);
}

}  // namespace
}  // namespace bitpare
