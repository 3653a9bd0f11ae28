// The order in which a mask prunes elements: those that are masked already, then by ascending
// score; equal scores in the order of the tensors, then of the elements.
#pragma once
#include "math/value.h"

namespace bitpare {

// Values as [slabs, members, inner]: N of M looks at the `members` neighbours along the middle.
struct GroupLayout {
  int64_t slabs, members, inner;

  int64_t n() const { return slabs * members * inner; }
};

namespace math {

// Maps scores to unsigned integers of the same order; -0 counts as 0, and NaN lies beyond the
// infinities.
template <class V>
BITPARE_INLINE typename Value<V>::Uint order_key(V score) {
  using Uint = typename Value<V>::Uint;
  auto bits = Value<V>::bits(score + splat<V>(0.0f));
  return (Uint)(bits ^ ((bits >> 31) | static_cast<int32_t>(0x80000000u)));
}

// Keys of numbers are those from kLeastKey on, this many; the others are of NaN.
constexpr uint32_t kLeastKey = 0x007fffff, kNumberKeys = 0xff800000 - kLeastKey + 1;

// The k-th least key lies in a window: the kBuckets << shift keys from `low` on. Counting the keys
// in each bucket tells the bucket that it lies in, which is the next window.
struct Window {
  uint32_t low;
  int32_t shift;
};

constexpr int32_t kBucketBits = 11, kBuckets = 1 << kBucketBits;
constexpr Window kWholeWindow = {0, 32 - kBucketBits};
constexpr int32_t kPasses = 3;  // from the whole window to a single key

// The bucket of a key; kBuckets or more outside the window.
template <class U>
BITPARE_INLINE U bucket_of(U key, const Window& w) {
  return (key - w.low) >> w.shift;
}

BITPARE_INLINE Window window_of_bucket(const Window& w, int32_t bucket) {
  uint32_t low = w.low + (static_cast<uint32_t>(bucket) << w.shift);
  return {low, w.shift > kBucketBits ? w.shift - kBucketBits : 0};
}

// below: how many of the candidates from the window's first key on are to be pruned.
struct Search {
  Window window;
  int64_t below;
};

BITPARE_INLINE bool is_kept(const uint64_t* mask, int64_t i) {
  return mask[i / 64] >> (i % 64) & 1;
}

// Returns whether element i is among the `keep` that its group of `members` keeps.
template <class Read>
BITPARE_INLINE bool stays_in_group(const GroupLayout& l, int64_t keep, int64_t i, Read read,
                                   const uint64_t* before) {
  int64_t slab = l.members * l.inner, within = i % slab;
  int64_t first = i - within + within % l.inner;
  uint32_t key = order_key(read(i));
  bool kept = !before || is_kept(before, i);
  int64_t earlier = 0;  // how many of the group are pruned before this one
  for (int64_t m = 0, j = first; m < l.members; ++m, j += l.inner) {
    uint32_t other = order_key(read(j));
    bool other_kept = !before || is_kept(before, j);
    bool less = other != key ? other < key : j < i;
    earlier += other_kept != kept ? kept : less;
  }
  return earlier >= l.members - keep;
}

}  // namespace math
}  // namespace bitpare
