// The formulas of integer inference. Codes are bytes: a grid of signed integers is moved up by 128,
// its zero point with it. `low` and `high` are the least and most code, minus the zero point.
#pragma once
#include "math/value.h"

namespace bitpare {

// The range of a result's codes.
struct CodeRange {
  float low, high;
  int32_t zero;
};

// The sum or product of two tensors of codes.
struct Pairing {
  float first_scale, second_scale, inverse_scale;
  int32_t first_zero, second_zero;
  bool product;
};

namespace math {

// Returns a code minus the zero point. x: an accumulator, or a sum of codes minus their zero point.
template <class V>
BITPARE_INLINE V requantized(V x, V multiplier, V low, V high) {
  return Value<V>::rint(clamp(x * multiplier, low, high));
}

// The code of a float, minus the zero point: rne(x / scale), clamped; 0 for a NaN.
template <class V>
BITPARE_INLINE V code_of(V x, float inverse, V low, V high) {
  V t = Value<V>::rint(clamp(x * splat<V>(inverse), low, high));
  return t == t ? t : splat<V>(0.0f);
}

// Takes codes a and b minus their zero points, and returns a code minus the result's.
template <class V>
BITPARE_INLINE V paired(V a, V b, const Pairing& rule, V low, V high) {
  V x = a * splat<V>(rule.first_scale), y = b * splat<V>(rule.second_scale);
  V value = rule.product ? x * y : x + y;
  return Value<V>::rint(clamp(value * splat<V>(rule.inverse_scale), low, high));
}

// A channel's affine function of a code minus its zero point.
template <class V>
BITPARE_INLINE V affine_code(V x, V multiplier, V offset, V low, V high) {
  return Value<V>::rint(clamp(x * multiplier + offset, low, high));
}

// Converts an accumulator to a float, for a dynamic input grid.
template <class V>
BITPARE_INLINE V dequantized(V accumulator, float scale, V multiplier, V offset) {
  return accumulator * (splat<V>(scale) * multiplier) + offset;
}

// Returns the factor of the sum of `count` elements in their mean.
BITPARE_INLINE float mean_multiplier(float scale, float new_scale, int64_t count) {
  return static_cast<float>(static_cast<double>(scale) /
                            (static_cast<double>(count) * static_cast<double>(new_scale)));
}

}  // namespace math
}  // namespace bitpare
