// Quantization to two or three levels around zero, times a scale.
#pragma once
#include "math/value.h"

namespace bitpare {

// sign: -1, +1. zero_one: 0, +1. minus_one_zero: -1, 0. ternary: -1, 0, +1, by a threshold.
enum class Levels : int32_t { sign, zero_one, minus_one_zero, ternary };

namespace math {

// The level of x: 0 counts as positive in `sign`, and as the level 0 elsewhere. NaN stays NaN.
template <Levels kLevels, class V>
BITPARE_INLINE V level_of(V x, V threshold) {
  V zero = splat<V>(0.0f), one = splat<V>(1.0f);
  V level = zero;
  if constexpr (kLevels == Levels::sign) {
    level = x < zero ? -one : one;
  } else if constexpr (kLevels == Levels::zero_one) {
    level = x > zero ? one : zero;
  } else if constexpr (kLevels == Levels::minus_one_zero) {
    level = x < zero ? -one : zero;
  } else {
    level = x > threshold ? one : (x < -threshold ? -one : zero);
  }
  return x == x ? level : x;
}

// Up to where the straight-through gradient passes, in scales: XNOR-Net's clip at |x| <= s
// (Rastegari et al., 2016) for two levels, the rounding range of {-1, 0, 1} for three.
template <Levels kLevels>
BITPARE_INLINE float clip_in_scales() {
  return kLevels == Levels::ternary ? 1.5f : 1.0f;
}

template <class V>
struct LevelTerms {
  V dx, scale;
};

template <Levels kLevels, class V>
BITPARE_INLINE LevelTerms<V> level_terms(V dy, V x, V scale, V threshold, bool clipped) {
  V limit = splat<V>(clip_in_scales<kLevels>()) * scale;
  V inside = absolute(x) <= limit ? dy : splat<V>(0.0f);
  return {clipped ? inside : dy, dy * level_of<kLevels>(x, threshold)};
}

}  // namespace math
}  // namespace bitpare
