// Reductions in the fixed order of math/reduce.h, each in the pass that also writes the
// elementwise result where there is one.
#pragma once
#include "kernels/cpu/blocks.h"
#include "math/reduce.h"

namespace bitpare {
namespace {

constexpr int64_t kLaneVectors = kSumLanes / kWidth;

// What a formula is told about the vector it works on.
struct Lanes {
  math::Affine<Vec> affine;
  int64_t channel;  // of lane 0; the others' too, or the next ones where channels are innermost
  int64_t count;    // how many lanes hold elements
};

// y[i] = f(lanes, terms, x[i] ...) over one reduction's tasks first .. last - 1, where f also
// writes one vector of each term, to be combined by Rule. y may be null (f's result is dropped).
// partial: [kTerms, pieces, channels].
template <class Rule, int kTerms, class Out, class F, class... In>
void reduce_tasks(const Quantizer& q, const ReduceLayout& layout, int64_t first, int64_t last,
                  float* partial, F f, Out* y, const In*... x) {
  int64_t pieces = math::pieces_of(layout), channels = layout.channels;

  // One vector, or the first `count` lanes of one, into the accumulators `sum`.
  auto step = [&](const math::Affine<Vec>& affine, int64_t channel, int64_t at, int64_t count,
                  auto sum) [[gnu::always_inline]] {
    Lanes lanes = {affine, channel, count < kWidth ? count : kWidth};
    Vec terms[kTerms];
    if (count >= kWidth) {
      Vec result = f(lanes, terms, load(x + at)...);
      if (y) store(y + at, result);
      for (int t = 0; t < kTerms; ++t) {
        *sum(t) = Rule::template combine<Vec>(t, *sum(t), terms[t]);
      }
    } else {
      Vec result = f(lanes, terms, load_some(x + at, count)...);
      if (y) store_some(y + at, result, count);
      for (int t = 0; t < kTerms; ++t) {
        Vec none = Rule::template identity<Vec>(t);
        Vec term = lane_numbers() < static_cast<int32_t>(count) ? terms[t] : none;
        *sum(t) = Rule::template combine<Vec>(t, *sum(t), term);
      }
    }
  };

  if (math::channels_innermost(layout)) {
    // A core takes kSumRows rows of up to kPeriod channels; the sums stay in the first cache.
    ChannelTable table;
    float sums[kTerms][ChannelTable::kPeriod + kWidth];
    for (int64_t piece = first; piece < last; ++piece) {
      int64_t end_row =
          (piece + 1) * kSumRows < layout.outer ? (piece + 1) * kSumRows : layout.outer;
      for (int64_t c0 = 0; c0 < channels; c0 += ChannelTable::kPeriod) {
        int64_t width =
            channels - c0 < ChannelTable::kPeriod ? channels - c0 : ChannelTable::kPeriod;
        table.fill(q, c0, width);
        for (int t = 0; t < kTerms; ++t) {
          for (int64_t c = 0; c < width; c += kWidth) {
            store(sums[t] + c, Rule::template identity<Vec>(t));
          }
        }
        for (int64_t row = piece * kSumRows; row < end_row; ++row) {
          for (int64_t c = 0; c < width; c += kWidth) {
            auto affine = table.from(c).at(0);
            Vec sum[kTerms];
            for (int t = 0; t < kTerms; ++t) sum[t] = load(sums[t] + c);
            step(affine, c0 + c, row * channels + c0 + c, width - c,
                 [&](int t) { return sum + t; });
            for (int t = 0; t < kTerms; ++t) store(sums[t] + c, sum[t]);
          }
        }
        for (int t = 0; t < kTerms; ++t) {
          float* out = partial + (t * pieces + piece) * channels + c0;
          __builtin_memcpy(out, sums[t], static_cast<uint64_t>(width) * sizeof(float));
        }
      }
    }
    return;
  }

  // A core takes one chunk of one row: 32 lanes in registers, folded once at its end.
  int64_t chunks = math::chunks_per_row(layout);
  for (int64_t task = first; task < last; ++task) {
    int64_t row = task / chunks, chunk = task % chunks;
    int64_t channel = row % channels, piece = row / channels * chunks + chunk;
    int64_t begin = row * layout.inner + chunk * kSumChunk;
    int64_t left = layout.inner - chunk * kSumChunk;
    int64_t count = left < kSumChunk ? left : kSumChunk;
    auto affine = splat_affine(math::affine_of_channel(q, channel));
    Vec sums[kTerms][kLaneVectors];
    for (int t = 0; t < kTerms; ++t) {
      for (int64_t v = 0; v < kLaneVectors; ++v) sums[t][v] = Rule::template identity<Vec>(t);
    }
    int64_t j = 0;
    for (; j + kSumLanes <= count; j += kSumLanes) {
#pragma GCC unroll 8
      for (int64_t v = 0; v < kLaneVectors; ++v) {
        step(affine, channel, begin + j + v * kWidth, kWidth, [&](int t) { return &sums[t][v]; });
      }
    }
    for (int64_t v = 0; j + v * kWidth < count; ++v) {
      step(affine, channel, begin + j + v * kWidth, count - j - v * kWidth,
           [&](int t) { return &sums[t][v]; });
    }
    for (int t = 0; t < kTerms; ++t) {
      float lanes[kSumLanes];
      for (int64_t v = 0; v < kLaneVectors; ++v) store(lanes + v * kWidth, sums[t][v]);
      partial[(t * pieces + piece) * channels + channel] = math::fold_lanes<Rule>(t, lanes);
    }
  }
}

// Tasks of reduce_tasks, and how many make a fair share of work for a thread.
int64_t tasks_of(const ReduceLayout& l) {
  return math::channels_innermost(l) ? math::pieces_of(l) : math::pieces_of(l) * l.channels;
}
int64_t task_grain(const ReduceLayout& l) {
  int64_t elements = math::channels_innermost(l) ? kSumRows * l.channels
                     : l.inner < kSumChunk       ? l.inner
                                                 : kSumChunk;
  return elements >= kGrain ? 1 : kGrain / (elements > 0 ? elements : 1);
}

// finish(channel, sums) with each term of each channel folded over its pieces.
template <class Rule, int kTerms, class Finish>
void finish_channels(ParallelFor parallel_for, const ReduceLayout& layout, float* partial,
                     Finish finish) {
  int64_t pieces = math::pieces_of(layout), channels = layout.channels;
  int64_t grain = pieces >= kGrain ? 1 : kGrain / (pieces > 0 ? pieces : 1);
  parallel(parallel_for, channels, grain, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      float sums[kTerms];
      for (int t = 0; t < kTerms; ++t) {
        sums[t] = math::fold_pairs<Rule>(t, partial + t * pieces * channels + c, pieces, channels);
      }
      finish(c, sums);
    }
  });
}

// All pieces in parallel, then finish(channel, sums) for each channel.
template <class Rule, int kTerms, class Finish, class Out, class F, class... In>
void reduce(ParallelFor parallel_for, const Quantizer& q, const ReduceLayout& layout,
            float* partial, Finish finish, F f, Out* y, const In*... x) {
  parallel(parallel_for, tasks_of(layout), task_grain(layout), [&](int64_t first, int64_t last) {
    reduce_tasks<Rule, kTerms>(q, layout, first, last, partial, f, y, x...);
  });
  finish_channels<Rule, kTerms>(parallel_for, layout, partial, finish);
}

}  // namespace
}  // namespace bitpare
