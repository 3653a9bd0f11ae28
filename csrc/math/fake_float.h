// Rounds to a small floating point format: sign, E exponent bits, M mantissa bits.
#pragma once
#include "math/fake_quant.h"

namespace bitpare {

// lowest_exponent: of the smallest normal number; subnormals share it. max: the largest finite.
struct FloatFormat {
  int32_t mantissa_bits = 0;
  int32_t lowest_exponent = 0;
  float max = 0;
};

namespace math {

// x, already divided by the scale, rounded to the format; above max it saturates, NaN stays NaN.
// With e the exponent of x, x 2^(M - e) is rounded to an integer and scaled back. Each power is
// applied in two exact factors, since with 8 exponent bits one would overflow.
template <Rounding kRounding, class V>
BITPARE_INLINE Code<V> round_to_float(V x, const FloatFormat& format, V uniform) {
  using Lane = Value<V>;
  auto exponent = ((Lane::bits(x) >> 23) & 255) - 127;
  auto clamped =
      exponent < format.lowest_exponent ? exponent * 0 + format.lowest_exponent : exponent;
  auto up = format.mantissa_bits - clamped;
  auto half = up >> 1;
  V whole = x * Lane::from_bits((half + 127) << 23) * Lane::from_bits((up - half + 127) << 23);
  V units = round_to_integer<kRounding>(whole, uniform);
  V rounded =
      units * Lane::from_bits((127 - half) << 23) * Lane::from_bits((127 - (up - half)) << 23);
  // Infinity has no exponent to scale by, and saturates like every large number.
  V limit = splat<V>(format.max);
  V value = absolute(x) > splat<V>(0x1.fffffep127f) ? x : rounded;
  return {value, clamp(value, -limit, limit)};
}

}  // namespace math
}  // namespace bitpare
