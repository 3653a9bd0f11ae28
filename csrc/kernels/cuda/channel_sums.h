// Two sums for each channel in the order of math/bn_act_fake_quant.h: the counterpart of
// kernels/cpu/channel_sums.h. Terms has
//   bool wanted();                            whether there is anything to sum
//   Values of_channel(channel);               the numbers that add() takes of a channel
//   void add(at, values, float sums[2]);      adds the terms of element `at`
//   void finish(channel, const float* sums);  sums: null if none were wanted
#pragma once
#include "kernels/cuda/reduce.h"
#include "math/bn_act_fake_quant.h"

namespace bitpare {
namespace {

// Each thread takes one sum of one channel; neighbouring threads read neighbouring elements.
template <class Terms>
__global__ void __launch_bounds__(kThreads)
    sum_columns(ReduceLayout layout, float* partial, Terms terms) {
  if (!terms.wanted()) return;
  int64_t channels = layout.channels, all = math::channel_sums(layout);
  int64_t task = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (task >= all * channels) return;
  int64_t merged = math::merged_rows(channels), number = task / channels, channel = task % channels;
  int64_t row = number / merged * (merged * kSumRows) + number % merged;
  int64_t end = row + merged * kSumRows < layout.outer ? row + merged * kSumRows : layout.outer;
  auto of_channel = terms.of_channel(channel);
  float sums[2] = {};
#pragma unroll 8
  for (; row < end; row += merged) terms.add(row * channels + channel, of_channel, sums);
  for (int t = 0; t < 2; ++t) partial[t * all * channels + task] = sums[t];
}

// A warp takes one chunk of one row: 32 neighbours at a time, each thread one lane.
template <class Terms>
__global__ void __launch_bounds__(kThreads)
    sum_rows(ReduceLayout layout, float* partial, Terms terms) {
  if (!terms.wanted()) return;
  int64_t chunks = math::chunks_per_row(layout), all = math::channel_sums(layout);
  int64_t task = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) / kWarp;
  if (task >= all * layout.channels) return;
  int64_t row = task / chunks, chunk = task % chunks, channel = row % layout.channels;
  int64_t begin = row * layout.inner + chunk * kSumChunk, left = layout.inner - chunk * kSumChunk;
  int64_t count = left < kSumChunk ? left : kSumChunk;
  auto of_channel = terms.of_channel(channel);
  float sums[2] = {};
#pragma unroll 8
  for (int64_t j = threadIdx.x % kWarp; j < count; j += kWarp)
    terms.add(begin + j, of_channel, sums);
  for (int t = 0; t < 2; ++t) {
    for (int half = kWarp / 2; half > 0; half /= 2) {
      sums[t] += __shfl_xor_sync(0xffffffffu, sums[t], half);
    }
    int64_t number = row / layout.channels * chunks + chunk;
    if (threadIdx.x % kWarp == 0) {
      partial[(t * all + number) * layout.channels + channel] = sums[t];
    }
  }
}

// A block takes one channel.
template <class Terms>
__global__ void __launch_bounds__(kThreads)
    finish_sums(ReduceLayout layout, float* partial, Terms terms) {
  BITPARE_SHARED(SharedFold<2>, shared);
  float sums[2];
  bool wanted = terms.wanted();
  if (wanted) {
    fold_channel<math::Sum, 2>(shared, math::channel_sums(layout), layout.channels, blockIdx.x,
                               partial, sums);
  }
  if (threadIdx.x == 0) terms.finish(blockIdx.x, wanted ? sums : nullptr);
}

// The same where a channel has few sums: a thread takes one channel.
template <class Terms>
__global__ void __launch_bounds__(kThreads)
    finish_few_sums(ReduceLayout layout, float* partial, Terms terms) {
  int64_t channel = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  int64_t count = math::channel_sums(layout), channels = layout.channels;
  if (channel >= channels) return;
  float sums[2];
  bool wanted = terms.wanted();
  for (int t = 0; t < 2 && wanted; ++t) {
    sums[t] =
        math::fold_pairs<math::Sum>(t, partial + t * count * channels + channel, count, channels);
  }
  terms.finish(channel, wanted ? sums : nullptr);
}

template <class Terms>
void sum_channels(const OnCuda& cuda, const ReduceLayout& layout, float* partial,
                  const Terms& terms) {
  int64_t tasks = math::channel_sums(layout) * layout.channels;
  if (math::channels_innermost(layout)) {
    launch(sum_columns<Terms>, blocks_for(tasks, kThreads), kThreads, cuda.stream, layout, partial,
           terms);
  } else {
    launch(sum_rows<Terms>, blocks_for(tasks * kWarp, kThreads), kThreads, cuda.stream, layout,
           partial, terms);
  }
  if (math::channel_sums(layout) <= kFewPieces) {
    launch(finish_few_sums<Terms>, blocks_for(layout.channels, kThreads), kThreads, cuda.stream,
           layout, partial, terms);
  } else {
    launch(finish_sums<Terms>, layout.channels, kThreads, cuda.stream, layout, partial, terms);
  }
}

// The channel of a thread's element, and of the elements after it.
struct Walk {
  int64_t channel, offset;

  __device__ Walk(const ReduceLayout& l, int64_t first, int64_t n) {
    if (n <= 0x7fffffff) {  // a division of 32 bits costs a quarter of one of 64
      uint32_t i = static_cast<uint32_t>(first), row = i / static_cast<uint32_t>(l.inner);
      offset = i - row * static_cast<uint32_t>(l.inner);
      channel = row % static_cast<uint32_t>(l.channels);
    } else {
      offset = first % l.inner;
      channel = first / l.inner % l.channels;
    }
  }
  __device__ void next(const ReduceLayout& l) {
    if (++offset < l.inner) return;
    offset = 0;
    if (++channel == l.channels) channel = 0;
  }
};

}  // namespace
}  // namespace bitpare
