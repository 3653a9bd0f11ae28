// The range of a set of values, and the bin of a histogram that a value falls into.
#pragma once
#include "math/value.h"

namespace bitpare::math {

// A range as three terms: the smallest, the largest, and NaN once one was seen, since comparisons
// skip NaN.
struct MinMax {
  template <class V>
  BITPARE_INLINE V identity(int term) {
    float infinity = __builtin_inff();
    return splat<V>(term == 0 ? infinity : term == 1 ? -infinity : 0.0f);
  }
  template <class V>
  BITPARE_INLINE V combine(int term, V a, V b) {
    if (term == 0) return b < a ? b : a;
    if (term == 1) return b > a ? b : a;
    return b == b ? a : b;
  }
};

// Returns a limit of the range, NaN if one was seen. Adding 0 makes a zero positive, so that the
// result does not depend on the order of merging.
BITPARE_INLINE float limit_of(float limit, float odd) { return odd == odd ? limit + 0.0f : odd; }

// The bin of x among `bins` equal ones over [low, low + bins / inverse_width]; values beyond the
// ends fall into the outermost bins, NaN into none (-1).
template <class V>
BITPARE_INLINE typename Value<V>::Int bin_of(V x, V low, V inverse_width, int32_t bins) {
  V position = Value<V>::floor((x - low) * inverse_width), zero = splat<V>(0.0f);
  V raised = position > zero ? position : zero, last = splat<V>(static_cast<float>(bins - 1));
  V bin = raised < last ? raised : last;
  return Value<V>::to_int(x == x ? bin : splat<V>(-1.0f));
}

BITPARE_INLINE float inverse_bin_width(float low, float high, int32_t bins) {
  float width = high - low;
  return width > 0.0f ? static_cast<float>(bins) / width : 0.0f;
}

}  // namespace bitpare::math
