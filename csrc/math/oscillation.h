// Tracking of weights that jump to and fro between two integers, and freezing of those that do so
// too often (Nagel et al., "Overcoming oscillations in quantization-aware training", 2022, alg. 1).
#pragma once
#include "math/fake_quant.h"

namespace bitpare::math {

// turn of a frozen weight; else it is the direction of the last change: -1, 0 or 1.
constexpr float kFrozen = 2.0f;

// code: the integer after the last step, or the one that the weight is frozen at. frequency: the
// running mean of "changed, and opposite to the change before". mean: the running mean of the
// integers.
template <class V>
struct Oscillation {
  V weight, code, turn, frequency, mean;
};

// Returns the state after the first step.
template <class V>
BITPARE_INLINE Oscillation<V> first_look(V weight, const Affine<V>& a, V low, V high) {
  V zero = splat<V>(0.0f), code = quantize<Rounding::nearest>(weight, a, low, high, zero).code;
  code = code == code ? code : zero;
  return {weight, code, zero, zero, code};
}

// Returns the state after the next step. If the frequency is above `threshold` the weight is frozen
// at the integer nearest to the mean, and set to its value from then on. NaN counts as no change.
template <class V>
BITPARE_INLINE Oscillation<V> next_look(const Oscillation<V>& o, const Affine<V>& a, V low, V high,
                                        V momentum, V threshold) {
  V zero = splat<V>(0.0f), one = splat<V>(1.0f), frozen = splat<V>(kFrozen);
  V now = quantize<Rounding::nearest>(o.weight, a, low, high, zero).code;
  now = now == now ? now : o.code;
  V change = now - o.code, direction = change > zero ? one : (change < zero ? -one : zero);
  V returned = direction * o.turn < zero ? one : zero;
  V frequency = momentum * returned + (one - momentum) * o.frequency;
  V mean = momentum * now + (one - momentum) * o.mean;
  V nearest = clamp(Value<V>::rint(mean), low, high);
  V turn = direction == zero ? o.turn : direction;
  turn = frequency > threshold ? frozen : turn;
  turn = o.turn == frozen ? frozen : turn;
  V frozen_code = o.turn == frozen ? o.code : nearest;
  return {turn == frozen ? dequantize(frozen_code, a) : o.weight,
          turn == frozen ? frozen_code : now, turn, o.turn == frozen ? o.frequency : frequency,
          turn == frozen ? frozen_code : mean};
}

}  // namespace bitpare::math
