// log as a polynomial of our own: the same bits on every instruction set and device.
#pragma once
#include "math/value.h"

namespace bitpare::math {

// Within 1 unit in the last place of log(x), subnormals included; -infinity for 0, NaN below it and
// for NaN, infinity for infinity.
// x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); with s = f / (2 + f),
//   log(1 + f) = 2 atanh(s) = 2 s + s R,  R = 2/3 s^2 + 2/5 s^4 + ...,
// and 2 s = f - f^2 / 2 + s f^2 / 2, so that what is added to f is small beside it.
template <class V>
BITPARE_INLINE V natural_logarithm(V x) {
  using Lane = Value<V>;
  V zero = splat<V>(0.0f), infinity = splat<V>(__builtin_inff());
  V small = splat<V>(0x1p-126f);
  V normal = x < small ? x * splat<V>(0x1p25f) : x;
  auto offset = Lane::bits(normal) - 0x3f3504f3;  // from sqrt(1/2)
  auto power = offset >> 23;
  V f = Lane::from_bits(Lane::bits(normal) - (power << 23)) - splat<V>(1.0f);
  V n = Lane::to_float(power) - (x < small ? splat<V>(25.0f) : zero);
  V s = f / (splat<V>(2.0f) + f);
  V z = s * s;
  V r = splat<V>(2.0f / 11);
  r = r * z + splat<V>(2.0f / 9);
  r = r * z + splat<V>(2.0f / 7);
  r = r * z + splat<V>(2.0f / 5);
  r = r * z + splat<V>(2.0f / 3);
  r = r * z;
  V half_square = splat<V>(0.5f) * f * f;
  V low = s * (half_square + r) + n * splat<V>(0x1.2fefa2p-17f);
  V result = n * splat<V>(0x1.62e3p-1f) + (f - (half_square - low));
  V bounded = x < infinity ? result : x;
  V positive = x > zero ? bounded : splat<V>(__builtin_nanf(""));
  return x == zero ? -infinity : positive;
}

}  // namespace bitpare::math
