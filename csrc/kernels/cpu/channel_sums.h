// Computes two sums for each channel in the order of math/bn_act_fake_quant.h, and loops over
// elements with the values of their channels. Both go over the same tiles, so that a thread finds
// in its cache what it read last.
#pragma once
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/reduce.h"
#include "math/bn_act_fake_quant.h"

namespace bitpare {
namespace {

// How many elements ahead memory is prefetched.
constexpr int64_t kAhead = 2048;

// One layout cut into tiles of `elements` neighbours, a multiple of 64: each is `pieces` pieces of
// wide rows where channels are innermost. `grain` tiles are worth a thread.
struct Tiles {
  ReduceLayout layout;
  bool columns;
  int64_t n, sums, width, pieces, elements, count, grain;

  explicit Tiles(const ReduceLayout& l)
      : layout(l),
        columns(math::channels_innermost(l)),
        n(l.outer * l.channels * l.inner),
        sums(math::channel_sums(l)),
        width(math::merged_rows(l.channels) * l.channels),
        pieces(1),
        elements(kChunk) {
    if (columns) {
      int64_t all = math::wide_pieces(l);
      while (pieces < 16 && all / pieces > 64) pieces *= 2;
      elements = pieces * kSumRows * width;
    }
    count = (n + elements - 1) / elements;
    grain = (kChunk + elements - 1) / elements;
  }

  int64_t begin(int64_t tile) const { return tile * elements; }
  int64_t end(int64_t tile) const { return at_most((tile + 1) * elements, n); }
};

// The values for vector k of a block: read from the tables, one for each element ...
template <int kTables>
struct SpreadTables {
  const float* at;
  int64_t size;
  [[gnu::always_inline]] Vec get(int table, int64_t k) const {
    return load(at + table * size + k * kWidth);
  }
};

// ... or those of one channel, in every lane.
template <int kTables>
struct OneOfTables {
  Vec all[kTables];
  [[gnu::always_inline]] Vec get(int table, int64_t) const { return all[table]; }
};

// kTables values for each channel: table k is `size` floats from k * size on.
struct ChannelTables {
  float* values;
  int64_t size, period, channels;

  float* at(int table) const { return values + table * size; }
  ChannelTables from(int table) const { return {at(table), size, period, channels}; }

  // Writes the values of the channels out over a wide row and the block after it.
  void repeat(int tables) const {
    for (int k = 0; k < tables; ++k) {
      float* v = at(k);
      for (int64_t j = channels; j < size; ++j) v[j] = v[j - channels];
    }
  }

  // The values of the column at offset j of a wide row, and of one channel.
  template <int kTables>
  [[gnu::always_inline]] OneOfTables<kTables> spread(int64_t j) const {
    OneOfTables<kTables> result;
    for (int k = 0; k < kTables; ++k) result.all[k] = load(at(k) + j);
    return result;
  }
  template <int kTables>
  [[gnu::always_inline]] OneOfTables<kTables> one(int64_t channel) const {
    OneOfTables<kTables> result;
    for (int k = 0; k < kTables; ++k) result.all[k] = math::splat<Vec>(at(k)[channel]);
    return result;
  }
};

// Adds kRows rows of `width` elements from element `at` on to `width` sums of each of two terms,
// and prefetches those `ahead`: the hardware does not see that rows read side by side are one
// stream.
template <int kRows, class Terms>
BITPARE_INLINE void add_rows(const Terms& terms, int64_t at, int64_t width, int64_t ahead,
                             const ChannelTables& tables, float* first, float* second) {
  int64_t j = 0;
  for (; j + kWidth <= width; j += kWidth) {
    Vec sums[2] = {load(first + j), load(second + j)};
    auto of_channel = tables.spread<Terms::kTables>(j);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      terms.fetch(at + ahead + r * width + j);
      terms.template add<true>(at + r * width + j, kWidth, of_channel, sums);
    }
    store(first + j, sums[0]);
    store(second + j, sums[1]);
  }
  if (j == width) return;
  int64_t left = width - j;
  Vec sums[2] = {load_some(first + j, left), load_some(second + j, left)};
  auto of_channel = tables.spread<Terms::kTables>(j);
  for (int r = 0; r < kRows; ++r) {
    terms.template add<false>(at + r * width + j, left, of_channel, sums);
  }
  store_some(first + j, sums[0], left);
  store_some(second + j, sums[1], left);
}

// Adds `count` rows of `width` floats, `stride` apart, in pairs of neighbours into the first.
void fold_rows(float* rows, int64_t count, int64_t width, int64_t stride) {
  for (int64_t step = 1; step < count; step *= 2) {
    for (int64_t i = 0; i + step < count; i += 2 * step) {
      float* into = rows + i * stride;
      const float* from = rows + (i + step) * stride;
      int64_t j = 0;
      for (; j + kWidth <= width; j += kWidth) store(into + j, load(into + j) + load(from + j));
      for (; j < width; ++j) into[j] += from[j];
    }
  }
}

// Sums up a tile with channels innermost: four rows at a time, each a stream of its own. The sums
// stay in the first cache, and end up in those of the tile's first piece.
template <class Terms>
void sum_columns(const Tiles& t, int64_t tile, const Terms& terms, const ChannelTables& tables,
                 float* partial) {
  int64_t begin = t.begin(tile), end = t.end(tile), piece = kSumRows * t.width;
  int64_t stride = t.sums * t.layout.channels;
  int64_t group = 4 * t.width, ahead = (kAhead + group - 1) / group * group;
  float* first = partial + begin / kSumRows;
  float* sums = first;
  for (int64_t at = begin; at < end; sums += t.width) {
    int64_t stop = at_most(at + piece, end);
    for (int64_t j = 0; j < t.width; ++j) sums[j] = sums[stride + j] = 0.0f;
    for (; at + group <= stop; at += group) {
      add_rows<4>(terms, at, t.width, ahead, tables, sums, sums + stride);
    }
    for (; at < stop; at += t.width) {
      add_rows<1>(terms, at, at_most(t.width, stop - at), ahead, tables, sums, sums + stride);
    }
  }
  int64_t channels = t.layout.channels, rows = (sums - first) / channels;
  fold_rows(first, rows, channels, channels);
  fold_rows(first + stride, rows, channels, channels);
}

// The lanes of a chunk, which are whole vectors, folded by halves.
BITPARE_INLINE float fold_vectors(Vec* lanes) {
  for (int64_t half = kLaneVectors / 2; half > 0; half /= 2) {
    for (int64_t v = 0; v < half; ++v) lanes[v] += lanes[v + half];
  }
  Vec sum = lanes[0];
  for (int half = kWidth / 2; half > 0; half /= 2) {
    sum += shuffled(sum, (lane_numbers() + half) & (kWidth - 1));
  }
  return sum[0];
}

// Sums up a tile with a channel's elements side by side: the chunks of rows that begin in it, with
// 32 lanes in registers.
template <class Terms>
void sum_chunks(const Tiles& t, int64_t tile, const Terms& terms, const ChannelTables& tables,
                float* partial) {
  const ReduceLayout& l = t.layout;
  int64_t chunks = math::chunks_per_row(l);
  auto first_from = [&](int64_t at) {
    return at / l.inner * chunks + (at % l.inner + kSumChunk - 1) / kSumChunk;
  };
  int64_t last = first_from(t.end(tile));
  for (int64_t task = first_from(t.begin(tile)); task < last; ++task) {
    int64_t row = task / chunks, chunk = task % chunks, channel = row % l.channels;
    int64_t begin = row * l.inner + chunk * kSumChunk;
    int64_t count = at_most(l.inner - chunk * kSumChunk, kSumChunk), j = 0;
    auto of_channel = tables.one<Terms::kTables>(channel);
    Vec lanes[kLaneVectors][2] = {};
    for (; j + kSumLanes <= count; j += kSumLanes) {
#pragma GCC unroll 8
      for (int64_t v = 0; v < kLaneVectors; ++v) {
        terms.template add<true>(begin + j + v * kWidth, kWidth, of_channel, lanes[v]);
      }
    }
    for (int64_t v = 0; j + v * kWidth < count; ++v) {
      int64_t left = at_most(count - j - v * kWidth, kWidth);
      if (left == kWidth) {
        terms.template add<true>(begin + j + v * kWidth, kWidth, of_channel, lanes[v]);
      } else {
        terms.template add<false>(begin + j + v * kWidth, left, of_channel, lanes[v]);
      }
    }
    float* out = partial + (row / l.channels * chunks + chunk) * l.channels + channel;
    for (int term = 0; term < 2; ++term) {
      Vec all[kLaneVectors];
      for (int64_t v = 0; v < kLaneVectors; ++v) all[v] = lanes[v][term];
      out[term * t.sums * l.channels] = fold_vectors(all);
    }
  }
}

// finish(first, last, sums, second_sums) for ranges of channels, with their sums of
// terms.add(at, count, what the first kTables tables hold of the channels, sums).
// partial: [2, t.sums, channels].
template <class Terms, class Finish>
void sum_channels(ParallelFor parallel_for, const Tiles& t, const Terms& terms,
                  const ChannelTables& tables, float* partial, Finish finish) {
  parallel(parallel_for, t.count, t.grain, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      if (t.columns) {
        sum_columns(t, tile, terms, tables, partial);
      } else {
        sum_chunks(t, tile, terms, tables, partial);
      }
    }
  });
  constexpr int64_t kBlockOfChannels = 64;
  int64_t channels = t.layout.channels, sums = t.columns ? t.count : t.sums;
  int64_t stride = t.columns ? t.elements / kSumRows : channels;
  int64_t blocks = (channels + kBlockOfChannels - 1) / kBlockOfChannels;
  // Besides its sums, a channel costs as much as a few sums.
  int64_t grain = kGrain / (kBlockOfChannels * (2 * sums + 8)) + 1;
  parallel(parallel_for, blocks, grain, [&](int64_t first, int64_t last) {
    int64_t begin = first * kBlockOfChannels, end = at_most(last * kBlockOfChannels, channels);
    float* all = partial + begin;
    float* second = all + t.sums * channels;
    fold_rows(all, sums, end - begin, stride);
    fold_rows(second, sums, end - begin, stride);
    finish(begin, end, all, second);
  });
}

// The state of a walk over neighbouring elements, where a channel's lie side by side.
template <int kTables>
class ChannelWalk {
 public:
  ChannelWalk(const ReduceLayout& l, const ChannelTables& tables, int64_t at)
      : tables_(tables),
        inner_(l.inner),
        channel_(at / l.inner % l.channels),
        offset_(at % l.inner) {}

  bool block_is_one() const { return offset_ + kBlock <= inner_; }

  // The values of the next block, which is of one channel.
  [[gnu::always_inline]] OneOfTables<kTables> one() {
    auto result = tables_.template one<kTables>(channel_);
    advance(kBlock);
    return result;
  }

  // Returns the tables of the next block, of several channels.
  SpreadTables<kTables> several() {
    for (int64_t p = 0; p < kBlock;) {
      int64_t run = at_most(inner_ - offset_, kBlock - p);
      for (int k = 0; k < kTables; ++k) {
        // Whole vectors, past the end of the run: what follows overwrites it.
        Vec value = math::splat<Vec>(tables_.at(k)[channel_]);
        for (int64_t j = 0; j < run; j += kWidth) store(spread_ + k * kSpread + p + j, value);
      }
      p += run;
      advance(run);
    }
    return {spread_, kSpread};
  }

 private:
  [[gnu::always_inline]] void advance(int64_t by) {
    offset_ += by;
    if (offset_ < inner_) return;
    offset_ = 0;
    if (++channel_ == tables_.channels) channel_ = 0;
  }

  static constexpr int64_t kSpread = kBlock + kWidth;
  ChannelTables tables_;
  int64_t inner_, channel_, offset_;
  float spread_[kTables * kSpread];
};

// body.operator()<kWhole>(i, tables) for the blocks of 64 elements of [begin, end), the last of
// which may have fewer. begin is a multiple of 64, and of a wide row's length where channels are
// innermost.
template <int kTables, class Body>
BITPARE_INLINE void for_each_channel_block(const Tiles& t, const ChannelTables& tables,
                                           int64_t begin, int64_t end, Body body) {
  using Spread = SpreadTables<kTables>;
  int64_t i = begin;
  if (t.columns) {
    int64_t p = 0;
    for (; i + kBlock <= end; i += kBlock) {
      body.template operator()<true>(i, Spread{tables.values + p, tables.size});
      p += kBlock;
      if (p >= tables.period) p -= tables.period;
    }
    if (i < end) body.template operator()<false>(i, Spread{tables.values + p, tables.size});
    return;
  }
  ChannelWalk<kTables> walk(t.layout, tables, begin);
  for (; i + kBlock <= end; i += kBlock) {
    if (walk.block_is_one()) {
      body.template operator()<true>(i, walk.one());
    } else {
      body.template operator()<true>(i, walk.several());
    }
  }
  if (i < end) body.template operator()<false>(i, walk.several());
}

}  // namespace
}  // namespace bitpare
