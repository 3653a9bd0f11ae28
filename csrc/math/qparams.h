// Scale and zero point from a range.
#pragma once
#include "math/fake_quant.h"

namespace bitpare {

struct RangeRule {
  float quant_min = 0, quant_max = 0;
  bool symmetric = true;
  bool power_of_two = false;
};

namespace math {

struct Qparams {
  float scale;
  int32_t zero_point;
};

// The smallest power of two that is not below s; s is positive and normal, or NaN.
BITPARE_INLINE float next_power_of_two(float s) {
  int32_t bits = Value<float>::bits(s);
  if (!(s < 0x1p127f)) return s;
  return Value<float>::from_bits((bits + 0x007fffff) & 0x7f800000);
}

// symmetric:  scale = max(|low|, |high|) / quant_max, zero_point = 0
// asymmetric: the range is widened to hold 0; scale = (high - low) / (quant_max - quant_min),
//             zero_point = clamp(quant_min - round(low / scale)); 0 is exact.
// A NaN range gives a NaN scale, an infinite one an infinite scale: the ops that take a scale
// refuse both. The halves keep high - low finite.
BITPARE_INLINE Qparams qparams(float low, float high, const RangeRule& rule) {
  float below = low > 0.0f ? 0.0f : low, above = high < 0.0f ? 0.0f : high;
  float scale = 0.0f;
  if (rule.symmetric) {
    float down = absolute(below), up = absolute(above);
    float widest = down > up || down != down ? down : up;
    scale = widest / rule.quant_max;
  } else {
    float levels = rule.quant_max - rule.quant_min;
    scale = (above * 0.5f - below * 0.5f) / (levels * 0.5f);
  }
  scale = scale < kScaleFloor ? kScaleFloor : scale;
  if (rule.power_of_two) scale = next_power_of_two(scale);
  if (rule.symmetric || !(scale < __builtin_inff())) return {scale, 0};
  float zero = rule.quant_min - Value<float>::rint(below / scale);
  return {scale, static_cast<int32_t>(clamp(zero, rule.quant_min, rule.quant_max))};
}

}  // namespace math
}  // namespace bitpare
