// Rounds to an integer, in six ways.
#pragma once
#include "math/value.h"

namespace bitpare {

enum class Rounding : int32_t { nearest, half_up, floor, ceil, toward_zero, stochastic };

namespace math {

// x rounded to an integer. `uniform` in [0, 1) decides the stochastic rounding and is otherwise
// unused: x goes up with the probability of its fractional part.
// x - floor(x) is exact, so a value just below a half is never carried over it.
template <Rounding kRounding, class V>
BITPARE_INLINE V round_to_integer(V x, V uniform) {
  using Lane = Value<V>;
  if constexpr (kRounding == Rounding::nearest) {
    return Lane::rint(x);
  } else if constexpr (kRounding == Rounding::ceil) {
    return -Lane::floor(-x);
  } else if constexpr (kRounding == Rounding::toward_zero) {
    return copy_sign(Lane::floor(absolute(x)), x);
  } else {
    V below = Lane::floor(x);
    V fraction = x - below;
    V one = splat<V>(1.0f), zero = splat<V>(0.0f);
    if constexpr (kRounding == Rounding::half_up) {
      return below + (fraction >= splat<V>(0.5f) ? one : zero);
    } else if constexpr (kRounding == Rounding::stochastic) {
      return below + (uniform < fraction ? one : zero);
    } else {
      return below;
    }
  }
}

}  // namespace math
}  // namespace bitpare
