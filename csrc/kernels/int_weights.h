// Linear layers with integer weights of 8, 4, 2 or 1 bit and activations in float.
#pragma once
#include "kernels/backend.h"
#include "kernels/int_conv.h"

namespace bitpare {

// y[r, o] = clamp(sum over groups g of (sum over k in g of x[r, k] w[o, k]) scale[o, g] +
// offset[o]) Both sums are taken in ascending order, one product after the other, so that the bits
// are the same everywhere. w[o, k] is a field, which has a sign, less zero[o, g]. x: [rows,
// x_step], y: [rows, y_step]. weight: [panels, bytes of a panel], see place_of_field. scale, zero
// (or null): [panels, groups, kPanel]. offset: [panels, kPanel]. group: inputs that share a scale;
// the last group may be shorter. factor, first: of a field f of one bit (0 or -1), which stands for
// f * factor + first.
struct IntWeights {
  const float* x;
  float* y;
  int64_t rows, inputs, outputs, x_step, y_step, group;
  const uint8_t* weight;
  int32_t bits;
  float factor, first;
  const float* scale;
  const float* zero;
  const float* offset;
  float least, most;
};

template <class Isa>
void int_weights(const IntWeights& args, const OnCpu<Isa>& cpu);
void int_weights(const IntWeights& args, const OnCuda& cuda);

namespace math {

// Bytes of a panel: [inputs of one byte, kPanel].
BITPARE_INLINE int64_t field_bytes(int64_t inputs, int32_t bits) {
  int64_t each = 8 / bits;
  return (inputs + each - 1) / each * kPanel;
}

// Returns the place of the field of weight [o, k]: a byte, and its lowest bit there.
BITPARE_INLINE WeightPlace place_of_field(int64_t inputs, int32_t bits, int64_t o, int64_t k) {
  int64_t each = 8 / bits;
  return {o / kPanel * field_bytes(inputs, bits) + k / each * kPanel + o % kPanel,
          static_cast<int32_t>(k % each) * bits};
}

// Returns the value of a field, less the zero point. byte: in the lowest bits of an int.
template <int kBits, class V, class Int>
BITPARE_INLINE V weight_value(Int byte, int32_t shift, float factor, float first, V zero) {
  Int field = byte << (32 - kBits - shift) >> (32 - kBits);
  V value = Value<V>::to_float(field);
  if constexpr (kBits == 1) value = value * splat<V>(factor) + splat<V>(first);
  return value - zero;
}

}  // namespace math
}  // namespace bitpare
