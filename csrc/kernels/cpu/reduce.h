// Reductions in the fixed order of math/reduce.h, each in the pass that also writes the
// elementwise result where there is one.
#pragma once
#include "kernels/cpu/blocks.h"
#include "math/reduce.h"

namespace bitpare {
namespace {

constexpr int64_t kLaneVectors = kSumLanes / kWidth;

// The position and channel values of the vector that a formula works on.
struct Lanes {
  math::Affine<Vec> affine;
  int64_t channel;  // of lane 0; the others' too, or the next ones where channels are innermost
  int64_t count;    // how many lanes hold elements: kWidth, or what is left
};

// One vector of a reduction, or its first lanes.count lanes: y[at] = f(lanes, terms, x[at] ...),
// where f also writes one vector of each term, which Rule combines into sums. y may be null.
template <class Rule, int kTerms, class Out, class F, class... In>
BITPARE_INLINE void accumulate(const Lanes& lanes, int64_t at, const F& f, Vec* (&sums)[kTerms],
                               Out* y, const In*... x) {
  Vec terms[kTerms];
  if (lanes.count == kWidth) {
    Vec result = f(lanes, terms, load(x + at)...);
    if (y) store(y + at, result);
  } else {
    Vec result = f(lanes, terms, load_some(x + at, lanes.count)...);
    if (y) store_some(y + at, result, lanes.count);
    for (int t = 0; t < kTerms; ++t) {
      Vec none = Rule::template identity<Vec>(t);
      terms[t] = lane_numbers() < static_cast<int32_t>(lanes.count) ? terms[t] : none;
    }
  }
  for (int t = 0; t < kTerms; ++t) *sums[t] = Rule::template combine<Vec>(t, *sums[t], terms[t]);
}

BITPARE_INLINE int64_t at_most(int64_t value, int64_t limit) {
  return value < limit ? value : limit;
}

// Reduces one chunk of one row, with 32 lanes in registers that are folded at its end. `task`
// counts chunks row after row. partial: [kTerms, pieces, channels].
template <class Rule, int kTerms, class Out, class F, class... In>
void reduce_chunk(const Quantizer& q, const ReduceLayout& layout, int64_t task, float* partial,
                  const F& f, Out* y, const In*... x) {
  int64_t chunks = math::chunks_per_row(layout), pieces = math::pieces_of(layout);
  int64_t row = task / chunks, chunk = task % chunks;
  int64_t channel = row % layout.channels, piece = row / layout.channels * chunks + chunk;
  int64_t begin = row * layout.inner + chunk * kSumChunk;
  int64_t count = at_most(layout.inner - chunk * kSumChunk, kSumChunk);
  Lanes lanes = {splat_affine(math::affine_of_channel(q, channel)), channel, kWidth};
  Vec sums[kTerms][kLaneVectors];
  for (int t = 0; t < kTerms; ++t) {
    for (int64_t v = 0; v < kLaneVectors; ++v) sums[t][v] = Rule::template identity<Vec>(t);
  }
  auto add = [&](int64_t v, int64_t at) [[gnu::always_inline]] {
    Vec* into[kTerms];
    for (int t = 0; t < kTerms; ++t) into[t] = &sums[t][v];
    accumulate<Rule, kTerms>(lanes, at, f, into, y, x...);
  };
  int64_t j = 0;
  for (; j + kSumLanes <= count; j += kSumLanes) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kLaneVectors; ++v) add(v, begin + j + v * kWidth);
  }
  for (int64_t v = 0; j + v * kWidth < count; ++v) {
    lanes.count = at_most(count - j - v * kWidth, kWidth);
    add(v, begin + j + v * kWidth);
  }
  for (int t = 0; t < kTerms; ++t) {
    float all[kSumLanes];
    for (int64_t v = 0; v < kLaneVectors; ++v) store(all + v * kWidth, sums[t][v]);
    partial[(t * pieces + piece) * layout.channels + channel] = math::fold_lanes<Rule>(t, all);
  }
}

// Reduces kSumRows rows of up to kPeriod channels, channels innermost; the sums stay in the first
// cache.
template <class Rule, int kTerms, class Out, class F, class... In>
void reduce_columns(const Quantizer& q, const ReduceLayout& layout, int64_t piece, float* partial,
                    const F& f, Out* y, const In*... x) {
  constexpr int64_t kColumns = ChannelTable::kPeriod;
  int64_t pieces = math::pieces_of(layout), channels = layout.channels;
  int64_t end_row = at_most((piece + 1) * kSumRows, layout.outer);
  ChannelTable table;
  float sums[kTerms][kColumns + kWidth];
  for (int64_t first = 0; first < channels; first += kColumns) {
    int64_t width = at_most(channels - first, kColumns);
    table.fill(q, first, width);
    for (int t = 0; t < kTerms; ++t) {
      for (int64_t c = 0; c < width; c += kWidth) {
        store(sums[t] + c, Rule::template identity<Vec>(t));
      }
    }
    for (int64_t row = piece * kSumRows; row < end_row; ++row) {
      for (int64_t c = 0; c < width; c += kWidth) {
        Lanes lanes = {table.from(c).at(0), first + c, at_most(width - c, kWidth)};
        Vec sum[kTerms], *into[kTerms];
        for (int t = 0; t < kTerms; ++t) {
          sum[t] = load(sums[t] + c);
          into[t] = &sum[t];
        }
        accumulate<Rule, kTerms>(lanes, row * channels + first + c, f, into, y, x...);
        for (int t = 0; t < kTerms; ++t) store(sums[t] + c, sum[t]);
      }
    }
    for (int t = 0; t < kTerms; ++t) {
      float* out = partial + (t * pieces + piece) * channels + first;
      // The loops above wrote `width` of them, which the analyzer does not follow.
      // NOLINTNEXTLINE(clang-analyzer-unix.cstring.UninitializedRead)
      __builtin_memcpy(out, sums[t], static_cast<uint64_t>(width) * sizeof(float));
    }
  }
}

// Tasks first .. last - 1 of a reduction: rows' chunks, or pieces of channels innermost.
template <class Rule, int kTerms, class Out, class F, class... In>
void reduce_tasks(const Quantizer& q, const ReduceLayout& layout, int64_t first, int64_t last,
                  float* partial, const F& f, Out* y, const In*... x) {
  bool columns = math::channels_innermost(layout);
  for (int64_t task = first; task < last; ++task) {
    if (columns) {
      reduce_columns<Rule, kTerms>(q, layout, task, partial, f, y, x...);
    } else {
      reduce_chunk<Rule, kTerms>(q, layout, task, partial, f, y, x...);
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

// Reduces all pieces in parallel, then calls finish(channel, sums) for each channel.
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
