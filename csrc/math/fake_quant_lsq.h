// The gradients of a quantizer whose scale and zero point are learned.
// LSQ: Esser et al., "Learned step size quantization", 2020, eq. 3. LSQ+: Bhalgat et al., 2020.
#pragma once
#include "math/fake_quant.h"

namespace bitpare::math {

// The terms that one element adds to the gradients. The sums of scale and zero_point are later
// multiplied by grad_scale and by -grad_scale * scale.
template <class V>
struct LsqTerms {
  V dx, scale, zero_point;
};

template <class V>
BITPARE_INLINE LsqTerms<V> lsq_terms(V dy, V x, const Affine<V>& a, V quant_min, V quant_max) {
  V zero = splat<V>(0.0f);
  V scaled = x * a.inverse;
  V rounded = Value<V>::rint(scaled) + a.zero_point;
  V code = clamp(rounded, quant_min, quant_max);
  V level = code - a.zero_point;
  V slope = rounded == code ? level - scaled : level;
  V dx = rounded == code ? dy : zero;
  V outside = rounded == code ? zero : dy;
  return {dx, dy * slope, outside};
}

// A scale at the floor may only grow: descent follows -ds, so a positive ds becomes 0.
BITPARE_INLINE float lsq_scale_gradient(float sum, float scale, float grad_scale) {
  float gradient = sum * grad_scale;
  return scale <= kScaleFloor && gradient > 0.0f ? 0.0f : gradient;
}

BITPARE_INLINE float lsq_zero_point_gradient(float sum, float scale, float grad_scale) {
  float floored = scale < kScaleFloor ? kScaleFloor : scale;
  return -(sum * (grad_scale * floored));
}

}  // namespace bitpare::math
