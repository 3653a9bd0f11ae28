// Loops over flat ranges in blocks of 64 elements, which are one word of bits and a whole number of
// vectors, and find the scale of each element without a division. Every elementwise kernel calls
// map() with its formula.
#pragma once
#include "kernels/backend.h"
#include "kernels/cpu/vec.h"
#include "kernels/dispatch.h"
#include "math/fake_quant.h"
#include "math/philox.h"

namespace bitpare {
namespace {

constexpr int64_t kBlock = 64;
constexpr int64_t kVectors = kBlock / kWidth;
// Ranges begin at multiples of this: 64 KB of floats, small enough to stay in the cache.
constexpr int64_t kChunk = 16384;
// A thread gets at least this many chunks: waking it costs 2 to 5 us, in which a core does as much
// work.
constexpr int64_t kGrainChunks = 2;
constexpr int64_t kGrain = kGrainChunks * kChunk;
// Results of more bytes are written past the cache: about half of a last-level cache.
constexpr int64_t kStreamBytes = 16 << 20;

// f(begin, end) over [0, count).
template <class F>
void parallel(ParallelFor parallel_for, int64_t count, int64_t grain, F f) {
  if (count <= 0) return;
  RangeBody body = [](void* context, int64_t begin, int64_t end) {
    (*static_cast<F*>(context))(begin, end);
  };
  if (count <= grain) return body(&f, 0, count);
  parallel_for(0, count, grain, body, &f);
}

// f(begin, end) over ranges of [0, n) that begin at multiples of kChunk.
template <class F>
void parallel_blocks(ParallelFor parallel_for, int64_t n, F f) {
  int64_t chunks = (n + kChunk - 1) / kChunk;
  parallel(parallel_for, chunks, kGrainChunks, [&](int64_t first, int64_t last) {
    f(first * kChunk, last * kChunk < n ? last * kChunk : n);
  });
}

BITPARE_INLINE math::Affine<Vec> splat_affine(const math::Affine<float>& a) {
  return {math::splat<Vec>(a.scale), math::splat<Vec>(a.inverse), math::splat<Vec>(a.zero_point),
          math::splat<Vec>(a.threshold)};
}

// The quantizer of vector k of a block: one channel ...
struct OneChannel {
  math::Affine<Vec> all;
  [[gnu::always_inline]] math::Affine<Vec> at(int64_t) const { return all; }
};

// ... or several, written out element by element.
struct ManyChannels {
  const float *scale, *inverse, *zero_point;
  const float* threshold;  // null where the quantizer has none
  [[gnu::always_inline]] math::Affine<Vec> at(int64_t k) const {
    int64_t j = k * kWidth;
    return {load(scale + j), load(inverse + j), load(zero_point + j),
            threshold ? load(threshold + j) : Vec{}};
  }
};

// Scales written out for a run of neighbouring elements.
class ChannelTable {
 public:
  static constexpr int64_t kPeriod = 4096;

  // Writes the values of elements first .. first + count - 1; count is at most kPeriod + kBlock.
  // Not inlined, which would double the code of many kernels.
  [[gnu::noinline]] void fill(const Quantizer& q, int64_t first, int64_t count) {
    int64_t inner = q.channel.inner, channels = q.channel.channels;
    int64_t channel = first / inner % channels, offset = first % inner;
    has_threshold_ = q.threshold;
    if (has_threshold_) fill_thresholds(q, first, count);
    for (int64_t p = 0; p < count;) {
      int64_t run = inner == 1 ? channels - channel : inner - offset;
      if (run > count - p) run = count - p;
      if (inner == 1) {
        write_channels(q, channel, p, run);
        channel = 0;
      } else {
        write_run(splat_affine(math::affine_of_channel(q, channel)), p, run);
        offset = 0;
        if (++channel == channels) channel = 0;
      }
      p += run;
    }
  }

  ManyChannels from(int64_t p) const {
    return {scale_ + p, inverse_ + p, zero_point_ + p, has_threshold_ ? threshold_ + p : nullptr};
  }

 private:
  void fill_thresholds(const Quantizer& q, int64_t first, int64_t count) {
    int64_t channel = first / q.channel.inner % q.channel.channels,
            offset = first % q.channel.inner;
    for (int64_t p = 0; p < count; ++p) {
      threshold_[p] = q.threshold[channel];
      if (++offset < q.channel.inner) continue;
      offset = 0;
      if (++channel == q.channel.channels) channel = 0;
    }
  }

  void write(const math::Affine<Vec>& a, int64_t p) {
    store(scale_ + p, a.scale);
    store(inverse_ + p, a.inverse);
    store(zero_point_ + p, a.zero_point);
  }

  // Whole vectors, past the end of the run: what follows overwrites it.
  void write_run(const math::Affine<Vec>& a, int64_t p, int64_t run) {
    for (int64_t j = 0; j < run; j += kWidth) write(a, p + j);
  }

  void write_channels(const Quantizer& q, int64_t channel, int64_t p, int64_t run) {
    for (int64_t j = 0; j < run; j += kWidth) {
      if (run - j >= kWidth) {
        int64_t c = channel + j;
        Vec zero_point = {};
        if (q.zero_point) zero_point = load(q.zero_point + c);
        if (q.learned_zero_point) {
          zero_point = math::zero_point_on_grid(load(q.learned_zero_point + c), q);
        }
        Vec scale = q.scale ? load(q.scale + c) : math::splat<Vec>(1.0f);
        write(math::affine(scale, zero_point, q), p + j);
      } else {
        for (int64_t l = j; l < run; ++l) {
          math::Affine<float> a = math::affine_of_channel(q, channel + l);
          scale_[p + l] = a.scale;
          inverse_[p + l] = a.inverse;
          zero_point_[p + l] = a.zero_point;
        }
      }
    }
  }

  static constexpr int64_t kSize = kPeriod + kBlock + kWidth;
  // Aligned, so that a vector does not cross a cache line.
  alignas(64) float scale_[kSize], inverse_[kSize], zero_point_[kSize], threshold_[kSize];
  bool has_threshold_ = false;
};

// body(i, channels) for the blocks that begin at i = begin, begin + 64, ... < end.
template <class Body>
void for_each_block(const Quantizer& q, int64_t begin, int64_t end, Body body) {
  int64_t inner = q.channel.inner, channels = q.channel.channels, period = inner * channels;
  if (channels == 1) {
    OneChannel all = {splat_affine(math::affine_of_channel(q, 0))};
    for (int64_t i = begin; i < end; i += kBlock) body(i, all);
    return;
  }
  ChannelTable table;
  if (period <= ChannelTable::kPeriod && end - begin >= 2 * period) {
    table.fill(q, 0, period + kBlock);
    int64_t p = begin % period;
    for (int64_t i = begin; i < end; i += kBlock) {
      body(i, table.from(p));
      p += kBlock;
      if (p >= period) p = period >= kBlock ? p - period : p % period;
    }
    return;
  }
  int64_t channel = begin / inner % channels, offset = begin % inner, known = -1;
  OneChannel one = {};
  for (int64_t i = begin; i < end; i += kBlock) {
    if (offset + kBlock <= inner) {
      if (channel != known) one = {splat_affine(math::affine_of_channel(q, channel))};
      known = channel;
      body(i, one);
    } else {
      table.fill(q, channel * inner + offset, kBlock);
      body(i, table.from(0));
    }
    offset += kBlock;
    if (offset >= inner) {
      channel = (channel + offset / inner) % channels;
      offset %= inner;
    }
  }
}

// Random numbers for vector k of the block that begins at element i.
BITPARE_INLINE Vec uniform_of(int64_t i, int64_t k, math::PhiloxKey key) {
  uint64_t first = static_cast<uint64_t>(i / kBlock) * 16 + static_cast<uint64_t>(k * kWidth % 16);
  // 16 divides the counter of a block's first element, so the low word never carries.
  auto words = math::philox<Vec>((VecUint)lane_numbers() + static_cast<uint32_t>(first),
                                 static_cast<uint32_t>(first >> 32), key);
  return math::uniform_from<Vec>(words.word[k * kWidth / 16]);
}

// The position and channel values of the vector that a formula works on.
struct Place {
  math::Affine<Vec> affine;
  int64_t block;        // the element the block begins at
  int64_t k;            // which vector of the block
  uint64_t inside = 0;  // for the formula to set: one bit per lane
};

// Returns the random numbers for stochastic rounding; other roundings need none.
template <Rounding kRounding>
BITPARE_INLINE Vec uniform(const Place& place, math::PhiloxKey key) {
  if constexpr (kRounding == Rounding::stochastic) return uniform_of(place.block, place.k, key);
  return Vec{};
}

// y[i] = f(place, x[i] ...) for i in [begin, end); bits gets place.inside where it is not null.
// begin is a multiple of 64. Results are written past the cache where `streamed`.
template <class Out, class F, class... In>
void map(const Quantizer& q, int64_t begin, int64_t end, bool streamed, F f, Out* y, uint64_t* bits,
         const In*... x) {
  streamed = streamed && reinterpret_cast<uint64_t>(y) % 64 == 0;
  for_each_block(q, begin, end, [=](int64_t i, const auto& channels) {
    uint64_t word = 0;
    if (end - i >= kBlock) {
#pragma GCC unroll 4
      for (int64_t k = 0; k < kVectors; ++k) {
        Place place = {channels.at(k), i, k};
        Vec result = f(place, load(x + i + k * kWidth)...);
        if (streamed) {
          stream(y + i + k * kWidth, result);
        } else {
          store(y + i + k * kWidth, result);
        }
        word |= place.inside << (k * kWidth);
      }
    } else {
      for (int64_t k = 0; i + k * kWidth < end; ++k) {
        int64_t at = i + k * kWidth, count = end - at < kWidth ? end - at : kWidth;
        Place place = {channels.at(k), i, k};
        store_some(y + at, f(place, load_some(x + at, count)...), count);
        word |= place.inside << (k * kWidth);
      }
      word &= ~0ull >> (kBlock - (end - i));
    }
    if (bits) bits[i / kBlock] = word;
  });
  if (streamed) fence();
}

}  // namespace
}  // namespace bitpare
