// Affine quantization of one value, and the gradients that replace its zero derivative.
#pragma once
#include "math/exp.h"
#include "math/rounding.h"

namespace bitpare {

// The replacement for the derivative of rounding in a backward pass.
enum class Estimator : int32_t { ste, identity, ewgs, tanh };

// Which scale an element uses: element i, counted in memory order, is of channel
// i / inner % channels.
struct ChannelMap {
  int64_t inner = 1;
  int64_t channels = 1;
};

// scale: [channels]; null is 1.
// zero_point: [channels]. learned_zero_point: [channels], used as the nearest integer on the grid.
//   At most one of the two is given; without them the zero point is 0.
// threshold: [channels], of levels that are chosen by one (math/binarize.h).
// quant_min, quant_max: the limits of the integer grid.
// floored: the scale is learned or a mean, and is raised to kScaleFloor where it is below.
struct Quantizer {
  const float* scale = nullptr;
  const int32_t* zero_point = nullptr;
  const float* learned_zero_point = nullptr;
  const float* threshold = nullptr;
  ChannelMap channel;
  float quant_min = 0, quant_max = 0;
  bool floored = false;
};

constexpr float kScaleFloor = 0x1p-40f;

namespace math {

// The numbers of one channel of a quantizer.
template <class V>
struct Affine {
  V scale, inverse, zero_point;
  V threshold = {};
};

// rounded: the integer before the clamp; code: after it.
template <class V>
struct Code {
  V rounded, code;
};

// A scale that is zero, negative, infinite or NaN makes every result NaN, on every device.
template <class V>
BITPARE_INLINE V usable_scale(V scale, bool is_floored) {
  V bad = splat<V>(__builtin_nanf("")), zero = splat<V>(0.0f), top = splat<V>(0x1.fffffep127f);
  V low = splat<V>(kScaleFloor);
  V floored = is_floored ? (scale < low ? low : scale) : scale;
  V positive = floored > zero ? floored : bad;
  return positive > top ? bad : positive;
}

template <class V>
BITPARE_INLINE Affine<V> affine(V scale, V zero_point, const Quantizer& q) {
  V usable = usable_scale(scale, q.floored);
  return {usable, splat<V>(1.0f) / usable, zero_point};
}

// A learned zero point is used as the integer nearest to it, inside the grid.
template <class V>
BITPARE_INLINE V zero_point_on_grid(V learned, const Quantizer& q) {
  return clamp(Value<V>::rint(learned), splat<V>(q.quant_min), splat<V>(q.quant_max));
}

BITPARE_INLINE Affine<float> affine_of_channel(const Quantizer& q, int64_t channel) {
  float zero_point = 0.0f;
  if (q.zero_point) zero_point = static_cast<float>(q.zero_point[channel]);
  if (q.learned_zero_point) {
    zero_point = zero_point_on_grid(q.learned_zero_point[channel], q);
  }
  Affine<float> a = affine(q.scale ? q.scale[channel] : 1.0f, zero_point, q);
  if (q.threshold) a.threshold = q.threshold[channel];
  return a;
}

// q = clamp(round(x / scale) + zero_point, quant_min, quant_max)
template <Rounding kRounding, class V>
BITPARE_INLINE Code<V> quantize(V x, const Affine<V>& a, V quant_min, V quant_max, V uniform) {
  V rounded = round_to_integer<kRounding>(x * a.inverse, uniform) + a.zero_point;
  return {rounded, clamp(rounded, quant_min, quant_max)};
}

template <class V>
BITPARE_INLINE V dequantize(V code, const Affine<V>& a) {
  return (code - a.zero_point) * a.scale;
}

// EWGS (Lee et al., "Network quantization with element-wise gradient scaling", 2021, eq. 6): the
// gradient grows where the update would move x away from its code, and is 0 outside the range.
template <class V>
BITPARE_INLINE V ewgs_gradient(V dy, V x, const Affine<V>& a, const Code<V>& c, V delta) {
  V zero = splat<V>(0.0f), one = splat<V>(1.0f);
  V sign = dy > zero ? one : (dy < zero ? -one : zero);
  V error = x * a.inverse - (c.code - a.zero_point);
  return c.rounded == c.code ? dy * (one + delta * sign * error) : zero;
}

// DSQ (Gong et al., "Differentiable soft quantization", 2019, eq. 4): the slope of a staircase of
// tanh steps of sharpness k, whose mean over a step is 1. peak = (k / 2) / tanh(k / 2).
template <class V>
BITPARE_INLINE V tanh_gradient(V dy, V x, const Affine<V>& a, const Code<V>& c, V k, V peak) {
  V position = x * a.inverse;
  V from_edge = position - Value<V>::floor(position) - splat<V>(0.5f);
  V t = hyperbolic_tangent(k * from_edge);
  V slope = peak * (splat<V>(1.0f) - t * t);
  return c.rounded == c.code ? dy * slope : splat<V>(0.0f);
}

}  // namespace math
}  // namespace bitpare
