// The squared error of quantizing with the grid of a range, and the choice among ranges by it.
#pragma once
#include "math/qparams.h"

namespace bitpare {
namespace math {

constexpr float kLeastPower = 0x1p-100f, kMostPower = 0x1p126f;

// The smallest power of two that is not below `magnitude`, held in [kLeastPower, kMostPower], where
// neither it, nor its inverse, nor a bin of it leaves the normal numbers.
BITPARE_INLINE float power_of_two_over(float magnitude) {
  return next_power_of_two(clamp(magnitude, kLeastPower, kMostPower));
}

// The power of two whose multiples errors are measured in: their squares then stay finite, and the
// bits are those of plain errors.
BITPARE_INLINE float unit_of(float low, float high) {
  float down = absolute(low), up = absolute(high);
  return power_of_two_over(down > up ? down : up);
}

// The grid that `qparams` gives the range [low, high], for values divided by `unit`.
BITPARE_INLINE Affine<float> affine_of_range(float low, float high, float unit,
                                             const RangeRule& rule) {
  Qparams p = qparams(low, high, rule);
  float scale = usable_scale(p.scale, false);
  return {scale / unit, 1.0f / scale * unit, static_cast<float>(p.zero_point)};
}

template <class V>
BITPARE_INLINE V squared_error(V x, const Affine<V>& a, V quant_min, V quant_max) {
  V code = quantize<Rounding::nearest>(x, a, quant_min, quant_max, V{}).code;
  V error = x - dequantize(code, a);
  return error * error;
}

// A candidate among ranges that grow with k.
struct Choice {
  float cost;
  int64_t k;
};

// Returns the cheaper of two candidates, or of equals the wider. A NaN cost counts as infinite.
BITPARE_INLINE Choice priced(float cost, int64_t k) {
  return {cost == cost ? cost : __builtin_inff(), k};
}
BITPARE_INLINE Choice better_of(const Choice& a, const Choice& b) {
  if (b.cost < a.cost) return b;
  if (a.cost < b.cost) return a;
  return a.k > b.k ? a : b;
}

BITPARE_INLINE float fraction_of(int64_t k, int64_t steps) {
  return static_cast<float>(k) / static_cast<float>(steps);
}

}  // namespace math
}  // namespace bitpare
