// exp and tanh as polynomials of our own: the same bits on every instruction set and device.
#pragma once
#include "math/value.h"

namespace bitpare::math {

// exp(r) for |r| <= ln 2 / 2.
template <class V>
BITPARE_INLINE V exponential_near_zero(V r) {
  V p = splat<V>(1.0f / 5040);
  p = p * r + splat<V>(1.0f / 720);
  p = p * r + splat<V>(1.0f / 120);
  p = p * r + splat<V>(1.0f / 24);
  p = p * r + splat<V>(1.0f / 6);
  p = p * r + splat<V>(0.5f);
  return p * r * r + r + splat<V>(1.0f);
}

// Within 2 units in the last place of exp(x); 0 below -104, infinity above 88.73, NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by its Taylor polynomial; 2^n in two factors, so that
// results in the subnormal range round once.
template <class V>
BITPARE_INLINE V exponential(V x) {
  using Lane = Value<V>;
  V bounded = clamp(x, splat<V>(-104.0f), splat<V>(89.0f));
  V n = Lane::rint(bounded * splat<V>(0x1.715476p+0f));
  V r = (bounded - n * splat<V>(0x1.62ep-1f)) - n * splat<V>(0x1.0bfbe8p-15f);
  V p = exponential_near_zero(r);
  // NaN has no integer form: its lanes take n = 0 and keep the NaN that is already in p.
  V whole = n == n ? n : splat<V>(0.0f);
  auto power = Lane::to_int(whole);
  auto half = power >> 1;
  V first = Lane::from_bits((half + 127) << 23);
  V second = Lane::from_bits((power - half + 127) << 23);
  return p * first * second;
}

// exp(x) for x <= 0, as a softmax needs it, in fewer steps: within 2 units in the last place, 0
// below -87 (where the largest term of a sum is 1), NaN for NaN. Adding 1.5 * 2^23 rounds x / ln 2
// to the units and leaves that integer in the low bits.
template <class V>
BITPARE_INLINE V exponential_below_one(V x) {
  using Lane = Value<V>;
  V low = splat<V>(-87.0f), big = splat<V>(0x1.8p23f);
  V bounded = x < low ? low : x;
  V shifted = bounded * splat<V>(0x1.715476p+0f) + big;
  V n = shifted - big;
  V r = (bounded - n * splat<V>(0x1.62ep-1f)) - n * splat<V>(0x1.0bfbe8p-15f);
  V p = exponential_near_zero(r);
  using Uint = typename Lane::Uint;  // of NaN any bits come here: they wrap
  Uint power = ((Uint)Lane::bits(shifted) << 23) + 0x3f800000u;
  V result = p * Lane::from_bits((typename Lane::Int)power);
  return x < low ? splat<V>(0.0f) : result;
}

// Within 1e-7 of tanh(x).
template <class V>
BITPARE_INLINE V hyperbolic_tangent(V x) {
  V one = splat<V>(1.0f), two = splat<V>(2.0f);
  V bounded = clamp(absolute(x), splat<V>(0.0f), splat<V>(20.0f));
  V t = one - two / (exponential(bounded * two) + one);
  return copy_sign(t, x);
}

}  // namespace bitpare::math
