// Scale and zero point from a range.
#pragma once
#include "math/fake_quant.h"

namespace bitpare {

struct RangeRule {
  float quant_min = 0, quant_max = 0;
  bool symmetric = true;
  bool power_of_two = false;
  float limit = 0;  // where positive, no value above it is on the grid
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

// `scale`, or the largest with which `levels` steps do not pass the limit. A product of a float and
// a level is exact in float64.
BITPARE_INLINE float scale_within(float scale, float levels, float limit) {
  if (!(static_cast<double>(scale) * static_cast<double>(levels) > static_cast<double>(limit))) {
    return scale;
  }
  float nearest = limit / levels;
  bool passes =
      static_cast<double>(nearest) * static_cast<double>(levels) > static_cast<double>(limit);
  return passes ? Value<float>::from_bits(Value<float>::bits(nearest) - 1) : nearest;
}

// symmetric:  scale = max(|low|, |high|) / quant_max, zero_point = 0
// asymmetric: the range is widened to hold 0; scale = (high - low) / (quant_max - quant_min),
//             zero_point = clamp(quant_min - round(low / scale)); 0 is exact.
// limit: the scale is reduced until the grid's top (with the range's bottom at 0) is at most that,
// unless it must be a power of two.
// A NaN range gives a NaN scale, an infinite one an infinite scale: the ops that take a scale
// refuse both. The halves keep high - low finite.
BITPARE_INLINE Qparams qparams(float low, float high, const RangeRule& rule) {
  float below = low > 0.0f ? 0.0f : low, above = high < 0.0f ? 0.0f : high;
  float scale = 0.0f, levels = rule.symmetric ? rule.quant_max : rule.quant_max - rule.quant_min;
  if (rule.symmetric) {
    float down = absolute(below), up = absolute(above);
    float widest = down > up || down != down ? down : up;
    scale = widest / levels;
  } else {
    scale = (above * 0.5f - below * 0.5f) / (levels * 0.5f);
  }
  scale = scale < kScaleFloor ? kScaleFloor : scale;
  if (rule.power_of_two) {
    scale = next_power_of_two(scale);
  } else if (rule.limit > 0.0f) {
    scale = scale_within(scale, levels, rule.limit);
  }
  if (rule.symmetric || !(scale < __builtin_inff())) return {scale, 0};
  float zero = rule.quant_min - Value<float>::rint(below / scale);
  return {scale, static_cast<int32_t>(clamp(zero, rule.quant_min, rule.quant_max))};
}

}  // namespace math
}  // namespace bitpare
