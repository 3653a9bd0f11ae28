// Masks of weights: one bit for each element, 1 where it is kept, in logical row-major order
// whatever the order in memory, so that a mask means the same in every layout.
#pragma once
#include "math/value.h"

namespace bitpare {

// Values in memory as [rows, inner, channels], whose logical order is [rows, channels, inner]:
// channels_last. Where inner or channels is 1 the two are the same.
struct MaskLayout {
  int64_t rows, channels, inner;

  int64_t n() const { return rows * channels * inner; }
};

namespace math {

BITPARE_INLINE bool in_logical_order(const MaskLayout& l) {
  return l.inner == 1 || l.channels == 1;
}

// Walks over elements in memory order, with their bits.
struct MaskWalk {
  int64_t channel, place, bit;

  BITPARE_INLINE MaskWalk from(const MaskLayout& l, int64_t element) {
    int64_t row = element / (l.inner * l.channels), rest = element - row * l.inner * l.channels;
    MaskWalk w;
    w.place = rest / l.channels;
    w.channel = rest - w.place * l.channels;
    w.bit = (row * l.channels + w.channel) * l.inner + w.place;
    return w;
  }

  BITPARE_INLINE void next(const MaskLayout& l, MaskWalk* w) {
    w->bit += l.inner;
    if (++w->channel < l.channels) return;
    w->channel = 0;
    w->bit += 1 - l.channels * l.inner;
    if (++w->place < l.inner) return;
    w->place = 0;
    w->bit += (l.channels - 1) * l.inner;
  }
};

}  // namespace math
}  // namespace bitpare
