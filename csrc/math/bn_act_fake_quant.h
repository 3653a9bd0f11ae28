// BatchNorm (Ioffe and Szegedy, "Batch normalization", 2015, alg. 1), an activation and fake
// quantization of one value, and their gradients. Sums are of floats; what is worked out once a
// channel is in double.
#pragma once
#include "math/activation.h"
#include "math/control.h"
#include "math/fake_quant.h"
#include "math/reduce.h"

namespace bitpare {

// The order of a channel's sums is that of math/reduce.h where a channel's neighbours lie side by
// side. Where channels are innermost, rows of few channels are too short for vectors, so
// merged_rows() neighbouring rows count as one wide row: a piece is kSumRows wide rows, whose
// elements are added to one sum for each column, in ascending order of rows, starting from 0. A
// channel has merged_rows() sums in each piece; all of them are added in pairs of neighbours.
constexpr int64_t kWideRow = 64;
constexpr int64_t kRowUnit = 16;
constexpr int64_t kWideChannels = 128;

namespace math {

// The least power of two that makes a wide row at least kWideRow elements and a multiple of
// kRowUnit; 1 from kWideChannels channels on.
BITPARE_INLINE int64_t merged_rows(int64_t channels) {
  int64_t rows = 1;
  if (channels >= kWideChannels) return rows;
  while (rows * channels < kWideRow || rows * channels % kRowUnit != 0) rows *= 2;
  return rows;
}

// Pieces of kSumRows wide rows.
BITPARE_INLINE int64_t wide_pieces(const ReduceLayout& l) {
  int64_t rows = kSumRows * merged_rows(l.channels);
  return (l.outer + rows - 1) / rows;
}

// How many sums of each channel are added in pairs.
BITPARE_INLINE int64_t channel_sums(const ReduceLayout& l) {
  if (!channels_innermost(l)) return pieces_of(l);
  return wide_pieces(l) * merged_rows(l.channels);
}

BITPARE_INLINE double square_root(double x) {
#ifdef __CUDA_ARCH__
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

// variance: biased.
struct Moments {
  double mean, variance;
};

// From the sums of x - shift and of its square. Any shift is right in exact arithmetic; the error
// grows with the square of its distance from the mean in standard deviations.
BITPARE_INLINE Moments moments_of(float shift, float sum, float squares, int64_t count) {
  double n = static_cast<double>(count), mean = sum / n, rest = squares - sum * mean;
  return {shift + mean, (rest < 0.0 ? 0.0 : rest) / n};
}

BITPARE_INLINE float running(float before, double now, double momentum) {
  return static_cast<float>((1.0 - momentum) * before + momentum * now);
}

BITPARE_INLINE double unbiased(double variance, int64_t count) {
  double n = static_cast<double>(count);
  return variance * (n / (n - 1.0));
}

// v = slope * x + offset, with what the backward pass needs of a channel.
struct Normalization {
  float slope, offset, mean, inverse_std;
};

BITPARE_INLINE Normalization normalization(Moments m, float weight, float bias, double eps) {
  double inverse_std = 1.0 / square_root(m.variance + eps);
  float slope = static_cast<float>(weight * inverse_std);
  return {slope, static_cast<float>(bias - m.mean * slope), static_cast<float>(m.mean),
          static_cast<float>(inverse_std)};
}

// dx = slope * dv + ((x - mean) * tilt + offset), the last two where the batch's own statistics
// were used, which depend on x.
struct NormalizationGradient {
  float slope, tilt, offset, weight, bias;
};

// bias and products: the sums of dv and of dv * (x - mean).
BITPARE_INLINE NormalizationGradient normalization_gradient(float bias, float products,
                                                            float weight, float inverse_std,
                                                            int64_t count) {
  double slope = static_cast<double>(weight) * inverse_std,
         share = slope / static_cast<double>(count);
  double tilt = -(share * inverse_std * inverse_std * products);
  return {static_cast<float>(slope), static_cast<float>(tilt), static_cast<float>(-(share * bias)),
          products * inverse_std, bias};
}

template <bool kOfBatch, class V>
BITPARE_INLINE V normalized_gradient(V dv, V x, V mean, V slope, V tilt, V offset) {
  if constexpr (kOfBatch) return slope * dv + ((x - mean) * tilt + offset);
  return slope * dv;
}

// Returns whether the activation's derivative takes more than the bit that is saved.
constexpr bool is_shaped(Activation a) { return a == Activation::hardswish; }

// Applies a shaped activation to v, and of the gradient dv that reached it.
template <bool kShaped, class V>
BITPARE_INLINE V shaped(V v) {
  if constexpr (kShaped) return activate<Activation::hardswish>(v);
  return v;
}
template <bool kShaped, class V>
BITPARE_INLINE V shaped_gradient(V dv, V v) {
  if constexpr (kShaped) return dv * activation_slope<Activation::hardswish>(v);
  return dv;
}

// low, high: what the integers are clamped to, with the activation's own limits folded in, which
// rounding, being monotonic, leaves exact. least, most: the activation's limits. positive: see
// is_active().
template <class V>
struct ActivationGrid {
  Affine<V> affine;
  V low, high, least, most;
  uint32_t positive;
};

BITPARE_INLINE ActivationGrid<float> activation_grid(const Quantizer& q, Activation activation) {
  float infinity = __builtin_inff();
  bool relu6 = activation == Activation::relu6, relu = relu6 || activation == Activation::relu;
  ActivationGrid<float> g = {affine_of_channel(q, 0),
                             q.quant_min,
                             q.quant_max,
                             relu ? 0.0f : -infinity,
                             relu6 ? 6.0f : infinity,
                             0};
  float top = Value<float>::rint(6.0f * g.affine.inverse) + g.affine.zero_point;
  if (relu && g.affine.zero_point > g.low) g.low = g.affine.zero_point;
  if (relu6 && top < g.high) g.high = top;
  g.positive = static_cast<uint32_t>(Value<float>::bits(relu6 ? 6.0f : infinity)) - (relu6 ? 1 : 0);
  return g;
}

// Returns whether 0 < v < 6, or 0 < v: positive floats are ordered as their bits are, all others
// come after them once 1 is taken off.
template <class V>
BITPARE_INLINE auto is_active(V v, uint32_t positive) {
  using Uint = typename Value<V>::Uint;
  return (Uint)Value<V>::bits(v) - 1u < (Uint{} + positive);
}

// rounded == code where the straight-through gradient passes.
template <class V>
struct Activated {
  V y, rounded, code;
};

// y = dequantize(quantize(activation(v))), or activation(v) where not kQuantize.
template <bool kActive, bool kQuantize, class V>
BITPARE_INLINE Activated<V> activated(V v, const ActivationGrid<V>& g) {
  V never = splat<V>(__builtin_nanf("")), zero = splat<V>(0.0f);
  Activated<V> a;
  if constexpr (kQuantize) {
    Code<V> c = quantize<Rounding::nearest>(v, g.affine, g.low, g.high, zero);
    a = {dequantize(c.code, g.affine), c.rounded, c.code};
  } else {
    a = {clamp(v, g.least, g.most), zero, zero};
  }
  if constexpr (kActive) a.rounded = is_active(v, g.positive) ? a.rounded : never;
  return a;
}

}  // namespace math
}  // namespace bitpare
