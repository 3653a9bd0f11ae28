// The scale of a weight from the weight itself: symmetric, so zero point 0.
#pragma once
#include "math/control.h"
#include "math/qparams.h"

namespace bitpare::math {

// Maps |x| to an integer of the same order, with infinity and then NaN on top, so that the maximum
// does not depend on the order of comparisons, and NaN wins.
template <class V>
BITPARE_INLINE typename Value<V>::Int magnitude_bits(V x) {
  return Value<V>::bits(x) & 0x7fffffff;
}

// The scale is NaN or infinite if the largest magnitude is.
BITPARE_INLINE float weight_scale(int32_t widest_bits, const Control& control, bool power_of_two) {
  float widest = Value<float>::from_bits(widest_bits);
  RangeRule rule = {static_cast<float>(control.quant_min), static_cast<float>(control.quant_max),
                    true, power_of_two};
  return qparams(-widest, widest, rule).scale;
}

}  // namespace bitpare::math
