// Which elements a mask prunes: first those that are masked already, then those of the least score;
// among equals those of the first tensor, then those that come first in it.
#pragma once
#include "math/value.h"

namespace bitpare {

// Values as [slabs, members, inner]: N of M looks at the `members` neighbours along the middle.
struct GroupLayout {
  int64_t slabs, members, inner;

  int64_t n() const { return slabs * members * inner; }
};

namespace math {

// Unsigned integers in the order of the scores; -0 counts as 0, and NaN lies outside the
// infinities.
template <class V>
BITPARE_INLINE typename Value<V>::Uint order_key(V score) {
  using Uint = typename Value<V>::Uint;
  auto bits = Value<V>::bits(score + splat<V>(0.0f));
  return (Uint)(bits ^ ((bits >> 31) | static_cast<int32_t>(0x80000000u)));
}

// The k-th least key is found digit by digit, from the highest on.
struct Digit {
  int32_t shift, bits;
};

constexpr int32_t kDigits = 3, kBuckets = 2048;

BITPARE_INLINE Digit digit_of(int32_t pass) {
  return pass == 0 ? Digit{21, 11} : pass == 1 ? Digit{10, 11} : Digit{0, 10};
}

template <class U>
BITPARE_INLINE U bucket_of(U key, Digit d) {
  return (key >> d.shift) & static_cast<uint32_t>((1 << d.bits) - 1);
}

// What is known of the k-th least key: its digits above those still looked for. below: how many of
// the candidates that share them are to be pruned.
struct Search {
  uint32_t prefix;
  int64_t below;
};

// Whether a key may still be the one; none of its digits is known before the first pass.
template <class U>
BITPARE_INLINE auto shares_prefix(U key, const Search& s, Digit d) {
  return (key >> (d.shift + d.bits)) == s.prefix;
}

BITPARE_INLINE bool is_kept(const uint64_t* mask, int64_t i) {
  return mask[i / 64] >> (i % 64) & 1;
}

// Whether element i is among the `keep` that its group of `members` keeps.
template <class Read>
BITPARE_INLINE bool stays_in_group(const GroupLayout& l, int64_t keep, int64_t i, Read read,
                                   const uint64_t* before) {
  int64_t slab = l.members * l.inner, within = i % slab;
  int64_t first = i - within + within % l.inner;
  uint32_t key = order_key(read(i));
  bool held = !before || is_kept(before, i);
  int64_t earlier = 0;  // how many of the group are pruned before this one
  for (int64_t m = 0, j = first; m < l.members; ++m, j += l.inner) {
    uint32_t other = order_key(read(j));
    bool other_held = !before || is_kept(before, j);
    bool less = other != key ? other < key : j < i;
    earlier += other_held != held ? held : less;
  }
  return earlier >= l.members - keep;
}

}  // namespace math
}  // namespace bitpare
