// BatchNorm, an activation and fake quantization in training.
//   v = (x - mean) / sqrt(variance + eps) * weight + bias
//   y = fake_quant(activation(v)), or activation(v) where control->quantize is 0
// with the batch's statistics, or the running ones where not training or control->freeze is set.
// The flags are read where the kernel runs.
#pragma once
#include "kernels/backend.h"
#include "kernels/layout/bn_act_fake_quant.h"

namespace bitpare {

// x, y: of dtype, laid out as `layout`, which has at least one element. inside: flat bits in the
// order of y, 1 where a gradient passes both the quantizer and the activation; or null.
// weight, bias: [channels], null is 1 and 0. quantizer: scale and zero point; its limits are the
// control's. running_mean, running_var: [channels]; num_batches_tracked: one, or null.
// pending: the least and the most activation(v) are folded in where control->observe is set; null:
// not observed.
// statistics: layout::BnStatistics, of those that were used; scratch: layout::BnWorkspace.
// activation: any but hardsigmoid.
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
// layout::BnWorkspace.
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

template <class Isa>
void bn_act_fake_quant(const BnActFakeQuant& args, const OnCpu<Isa>& cpu);
void bn_act_fake_quant(const BnActFakeQuant& args, const OnCuda& cuda);

template <class Isa>
void bn_act_fake_quant_gradient(const BnActFakeQuantGradient& args, const OnCpu<Isa>& cpu);
void bn_act_fake_quant_gradient(const BnActFakeQuantGradient& args, const OnCuda& cuda);

}  // namespace bitpare
