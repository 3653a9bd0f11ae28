// Activation, range statistics and fake quantization in one read of x and one write of y.
//   v[i] = x[i] + other[i]; w[i] = act(v[i])
//   y[i] = control.quantize ? fake_quant(w[i]) : w[i], with one scale
//   inside: bit i % 64 of word i / 64 is 1 where w[i] lay in range (or control.quantize is 0) and,
//   for relu and relu6, the activation's own derivative is 1.
//   pending: the least and most of w is folded in where control.observe is set.
#pragma once
#include "kernels/backend.h"
#include "math/activation.h"
#include "math/control.h"
#include "math/fake_quant.h"

namespace bitpare {

// How many elements share one partial range of the CUDA kernel.
constexpr int64_t kActElements = 2048;
constexpr int kActTerms = 3;

// x, y: [n] of dtype in one memory order, may alias. other: the same, or null.
// inside: [ceil(n / 64)] or null. scale: [1]; zero_point: [1] or null. pending: [2], or null: not
// observed.
// partial: scratch of the CUDA kernel, [kActTerms, ceil(n / kActElements)].
struct ActFakeQuant {
  const void* x;
  const void* other;
  void* y;
  uint64_t* inside;
  int64_t n;
  DType dtype;
  Activation activation;
  const float* scale;
  const int32_t* zero_point;
  const Control* control;
  float* pending;
  float* partial;
};

// dx[i] = inside ? dy[i] * act'(x[i]) : 0. dy, x, dx: [n] of dtype; dx may alias either.
struct ActFakeQuantGradient {
  const void* dy;
  const void* x;
  const uint64_t* inside;
  void* dx;
  int64_t n;
  DType dtype;
  Activation activation;
};

template <class Isa>
void act_fake_quant(const ActFakeQuant& args, const OnCpu<Isa>& cpu);
void act_fake_quant(const ActFakeQuant& args, const OnCuda& cuda);

template <class Isa>
void act_fake_quant_gradient(const ActFakeQuantGradient& args, const OnCpu<Isa>& cpu);
void act_fake_quant_gradient(const ActFakeQuantGradient& args, const OnCuda& cuda);

}  // namespace bitpare
