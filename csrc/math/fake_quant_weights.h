// The scale of a weight from the weight itself: symmetric, so zero point 0.
#pragma once
#include "math/control.h"
#include "math/qparams.h"

namespace bitpare::math {

// |x| as an integer that orders as |x| does, with infinity and then NaN on top: its largest is the
// same in any order of looking, and NaN wins.
template <class V>
BITPARE_INLINE typename Value<V>::Int magnitude_bits(V x) {
  return Value<V>::bits(x) & 0x7fffffff;
}

// NaN or infinite where the largest magnitude is.
BITPARE_INLINE float weight_scale(int32_t widest_bits, const Control& control, bool power_of_two) {
  float widest = Value<float>::from_bits(widest_bits);
  RangeRule rule = {static_cast<float>(control.quant_min), static_cast<float>(control.quant_max),
                    true, power_of_two};
  return qparams(-widest, widest, rule).scale;
}

}  // namespace bitpare::math
