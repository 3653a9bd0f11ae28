// Activations that a quantizer follows, and their derivatives, as torch defines them. NaN stays
// NaN.
#pragma once
#include "math/value.h"

namespace bitpare {

enum class Activation : int32_t { none, relu, relu6, hardswish, hardsigmoid };

// Returns whether the derivative is 0 or 1 everywhere: a gradient then needs one bit for each
// element.
constexpr bool is_mask(Activation a) { return a <= Activation::relu6; }

namespace math {

template <Activation kActivation, class V>
BITPARE_INLINE V activate(V x) {
  V zero = splat<V>(0.0f), six = splat<V>(6.0f);
  if constexpr (kActivation == Activation::relu) {
    return x < zero ? zero : x;
  } else if constexpr (kActivation == Activation::relu6) {
    return clamp(x, zero, six);
  } else if constexpr (kActivation == Activation::hardswish) {
    return x * clamp(x + splat<V>(3.0f), zero, six) / six;
  } else if constexpr (kActivation == Activation::hardsigmoid) {
    return clamp(x + splat<V>(3.0f), zero, six) / six;
  } else {
    return x;
  }
}

// Returns where the derivative of relu or relu6 is 1, not 0. less(a, b) compares values, and
// returns a bool or one bit for each lane.
template <Activation kActivation, class V, class Less>
BITPARE_INLINE auto activation_passes(V x, Less less) {
  auto positive = less(splat<V>(0.0f), x);
  if constexpr (kActivation == Activation::relu6) {
    return positive & less(x, splat<V>(6.0f));
  } else {
    return positive;
  }
}

// The derivative of hardswish or hardsigmoid at x.
template <Activation kActivation, class V>
BITPARE_INLINE V activation_slope(V x) {
  V zero = splat<V>(0.0f), one = splat<V>(1.0f), three = splat<V>(3.0f);
  V rising = one / splat<V>(6.0f), saturated = zero;
  if constexpr (kActivation == Activation::hardswish) {
    rising = x / three + splat<V>(0.5f);
    saturated = one;
  }
  V slope = x < three ? rising : saturated;
  return x > -three ? slope : zero;
}

}  // namespace math
}  // namespace bitpare
