// The keys of scores in blocks, and the search for the key of a rank by counting: see
// math/select_mask.h.
#pragma once
#include "kernels/cpu/blocks.h"
#include "kernels/select_mask.h"

namespace bitpare {
namespace {

using math::Search;
using math::Window;

int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t ones(uint64_t word) { return __builtin_popcountll(word); }

// The elements of the block that begins at i.
uint64_t valid_word(int64_t n, int64_t i) {
  return n - i >= kBlock ? ~0ull : ~0ull >> (kBlock - (n - i));
}

uint64_t kept_before(const Scores& s, int64_t i) {
  return s.before ? s.before[i / kBlock] & valid_word(s.n, i) : valid_word(s.n, i);
}

// Which elements are candidates: those that are masked already, or the others.
struct Pool {
  bool from_masked;

  uint64_t candidates(const Scores& s, int64_t i) const {
    uint64_t kept = kept_before(s, i);
    return from_masked ? valid_word(s.n, i) & ~kept : kept;
  }
  // Elements that are pruned whatever their score.
  uint64_t pruned(const Scores& s, int64_t i) const {
    return from_masked ? 0 : valid_word(s.n, i) & ~kept_before(s, i);
  }
};

// The keys of a block, in vectors. Past the end they are the key of 0.
struct Keys {
  VecUint at[kVectors];
};

template <class T>
BITPARE_INLINE Vec scores_at(const T* x, int64_t i, int64_t n) {
  if (n - i >= kWidth) return load(x + i);
  return n > i ? load_some(x + i, n - i) : Vec{};
}

template <class T>
BITPARE_INLINE Keys keys_of(const Scores& s, int64_t i) {
  Keys keys;
  auto x = static_cast<const T*>(s.x);
#pragma GCC unroll 16
  for (int64_t k = 0; k < kVectors; ++k) {
    keys.at[k] = math::order_key(scores_at(x, i + k * kWidth, s.n));
  }
  return keys;
}

// Collects the bits that f returns for each vector of keys.
template <class F>
BITPARE_INLINE uint64_t bits_where(const Keys& keys, F f) {
  uint64_t word = 0;
#pragma GCC unroll 16
  for (int64_t k = 0; k < kVectors; ++k) word |= f(keys.at[k]) << (k * kWidth);
  return word;
}

VecUint splat_key(uint32_t key) { return VecUint{} + key; }

bool holds_nan(const Keys& keys) {
  VecUint least = splat_key(math::kLeastKey), count = splat_key(math::kNumberKeys);
  return ~bits_where(keys, [&](VecUint key) { return less_bits(key - least, count); });
}

// Several counters for each bucket: neighbours often fall into the same one, and would wait for
// each other.
constexpr int64_t kCopies = 4;

// The numbers of candidates before a window, and in each of its buckets.
struct Counts {
  int64_t before = 0;
  int32_t at[math::kBuckets * kCopies] = {};

  int64_t of(int64_t bucket) const {
    int64_t sum = 0;
    for (int64_t c = 0; c < kCopies; ++c) sum += at[bucket * kCopies + c];
    return sum;
  }
};

// kFirst: what lies before the window is not known yet.
template <bool kFirst>
BITPARE_INLINE void count(const Keys& keys, uint64_t candidates, const Window& w, Counts* counts) {
  if constexpr (kFirst) {
    VecUint low = splat_key(w.low);
    counts->before +=
        ones(bits_where(keys, [&](VecUint key) { return less_bits(key, low); }) & candidates);
  }
  VecUint end = splat_key(math::kBuckets);
  uint64_t wanted = candidates & bits_where(keys, [&](VecUint key) {
                      return less_bits(math::bucket_of(key, w), end);
                    });
  if (!wanted) return;
  uint32_t bucket[kBlock];
#pragma GCC unroll 16
  for (int64_t k = 0; k < kVectors; ++k) {
    VecUint b = math::bucket_of(keys.at[k], w);
    __builtin_memcpy(bucket + k * kWidth, &b, sizeof b);
  }
  if (wanted == ~0ull) {
    for (int64_t j = 0; j < kBlock; ++j) ++counts->at[bucket[j] * kCopies + j % kCopies];
    return;
  }
  for (; wanted; wanted &= wanted - 1) {
    int64_t j = __builtin_ctzll(wanted);
    ++counts->at[bucket[j] * kCopies + j % kCopies];
  }
}

// Narrows the search to the bucket that holds the last element to be pruned. Returns how many
// candidates are in it, or 0 if the element lies outside the window.
template <class CountOf>
int64_t take_bucket(int64_t before, CountOf count_of, Search* search) {
  int64_t below = search->below - before;
  if (below <= 0) return 0;
  for (int32_t bucket = 0; bucket < math::kBuckets; ++bucket) {
    int64_t here = count_of(bucket);
    if (below <= here) {
      *search = {math::window_of_bucket(search->window, bucket), below};
      return here;
    }
    below -= here;
  }
  return 0;
}

// How many keys are sampled: a window guessed from them saves a pass over all candidates.
constexpr int64_t kSample = 8192;
// Neighbours are alike, so few are sampled in one place.
constexpr int64_t kSampledNeighbours = 16;

// The key of a rank among the sample.
uint32_t key_of_rank(const uint32_t* keys, int64_t size, int64_t rank) {
  Search search = {math::kWholeWindow, rank + 1};
  for (int32_t pass = 0; pass < math::kPasses; ++pass) {
    int32_t counts[math::kBuckets] = {};
    for (int64_t i = 0; i < size; ++i) {
      uint32_t bucket = math::bucket_of(keys[i], search.window);
      if (bucket < math::kBuckets) ++counts[bucket];
    }
    take_bucket(0, [&](int32_t bucket) { return counts[bucket]; }, &search);
  }
  return search.window.low;
}

// A window around the rank `below` of `all` that the sample allows for.
Window guessed_window(const uint32_t* keys, int64_t size, int64_t below, int64_t all) {
  double share = static_cast<double>(below) / static_cast<double>(all);
  int64_t rank = static_cast<int64_t>(share * static_cast<double>(size));
  int64_t margin = 16;  // of several times what chance does: 4 sqrt(size share (1 - share))
  double spread = 16.0 * static_cast<double>(size) * share * (1.0 - share);
  while (static_cast<double>(margin * margin) < spread) margin += 16;
  int64_t first = rank - margin, last = rank + margin;
  uint32_t low = first < 0 ? 0 : key_of_rank(keys, size, first);
  uint32_t high = last >= size ? ~0u : key_of_rank(keys, size, last);
  int32_t shift = 0;
  while ((high - low) >> shift >= math::kBuckets) ++shift;
  return {low, shift};
}

// Bits that are pruned by their score, and those of the threshold itself.
struct Verdict {
  uint64_t below, equal;
};

BITPARE_INLINE Verdict verdict_of(const Keys& keys, uint32_t threshold, uint64_t candidates) {
  VecUint t = splat_key(threshold);
  return {bits_where(keys, [&](VecUint key) { return less_bits(key, t); }) & candidates,
          bits_where(keys, [&](VecUint key) { return equal_bits(key, t); }) & candidates};
}

}  // namespace
}  // namespace bitpare
