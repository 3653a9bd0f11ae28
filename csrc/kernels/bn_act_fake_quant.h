// BatchNorm, an activation and fake quantization in training.
//   v = (x - mean) / sqrt(variance + eps) * weight + bias
//   y = fake_quant(activation(v)), or activation(v) where control->quantize is 0
// with the batch's statistics, or the running ones where not training or control->freeze is set.
// The flags are read where the kernel runs.
#pragma once
#include "kernels/backend.h"
#include "math/bn_act_fake_quant.h"

namespace bitpare {

// x, y: of dtype, laid out as `layout`, which has at least one element. inside: flat bits in the
// order of y, 1 where a gradient passes both the quantizer and the activation; or null.
// weight, bias: [channels], null is 1 and 0. quantizer: scale and zero point; its limits are the
// control's. running_mean, running_var: [channels]; num_batches_tracked: one, or null.
// pending: the least and the most activation(v) are folded in where control->observe is set; null:
// not observed.
// statistics: bn_statistics(channels) floats, the mean and 1 / sqrt(variance + eps) that were used,
// then 1 where they were the batch's, then slope and offset of v = slope * x + offset.
// scratch: bn_scratch(layout) floats. activation: hardsigmoid is not among them.
struct BnActFakeQuant {
  const void* x;
  void* y;
  uint64_t* inside;
  DType dtype;
  ReduceLayout layout;
  const float* weight;
  const float* bias;
  float* running_mean;
  float* running_var;
  int64_t* num_batches_tracked;
  Quantizer quantizer;
  const Control* control;
  float* pending;
  float* statistics;
  float* scratch;
  Activation activation;
  bool training;
  double momentum, eps;
};

// dy, x, dx: laid out as `layout`; dx may alias dy. inside and statistics: what the forward pass
// wrote, with the same activation. weight_gradient, bias_gradient: [channels]. scratch:
// bn_scratch(layout) floats.
struct BnActFakeQuantGradient {
  const void* dy;
  const void* x;
  void* dx;
  const uint64_t* inside;
  DType dtype;
  ReduceLayout layout;
  const float* weight;
  const float* statistics;
  float* weight_gradient;
  float* bias_gradient;
  float* scratch;
  Activation activation;
};

BITPARE_INLINE int64_t bn_statistics(int64_t channels) { return 4 * channels + 1; }
BITPARE_INLINE int64_t bn_shape_tables(int64_t channels) { return 2 * channels + 1; }

// Scratch: two partial sums of each channel, up to kBnTables values of each column of a wide row
// and as many more as a block of 64 elements can reach beyond its end, and a range for each
// kBnPart elements.
constexpr int kBnTables = 6;
constexpr int64_t kBnPart = 2048;
BITPARE_INLINE int64_t bn_sums(const ReduceLayout& l) {
  return 2 * math::channel_sums(l) * l.channels;
}
BITPARE_INLINE int64_t bn_period(const ReduceLayout& l) {
  return math::merged_rows(l.channels) * l.channels;
}
BITPARE_INLINE int64_t bn_room(const ReduceLayout& l) { return bn_period(l) + 64; }
BITPARE_INLINE int64_t bn_scratch(const ReduceLayout& l) {
  int64_t n = l.outer * l.channels * l.inner;
  return bn_sums(l) + kBnTables * bn_room(l) + 3 * ((n + kBnPart - 1) / kBnPart);
}

template <class Isa>
void bn_act_fake_quant(const BnActFakeQuant& args, const OnCpu<Isa>& cpu);
void bn_act_fake_quant(const BnActFakeQuant& args, const OnCuda& cuda);

template <class Isa>
void bn_act_fake_quant_gradient(const BnActFakeQuantGradient& args, const OnCpu<Isa>& cpu);
void bn_act_fake_quant_gradient(const BnActFakeQuantGradient& args, const OnCuda& cuda);

}  // namespace bitpare
