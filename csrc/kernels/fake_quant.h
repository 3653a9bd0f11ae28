// Fake quantization of a flat range of values.
//   y[i] = (clamp(round(x[i] / scale) + zero_point, quant_min, quant_max) - zero_point) * scale
//   inside: bit i % 64 of word i / 64 is 1 where the rounded value lay in range before the clamp
//   (the straight-through mask).
#pragma once
#include "kernels/backend.h"
#include "math/fake_quant.h"

namespace bitpare {

// x, y: [n] of dtype in one memory order, may alias. inside: [ceil(n / 64)] or null.
// rng: int64[2], seed and step, where the rounding is stochastic, else null.
struct FakeQuant {
  const void* x;
  void* y;
  uint64_t* inside;
  int64_t n;
  DType dtype;
  Quantizer quantizer;
  Rounding rounding;
  const int64_t* rng;
};

// dy, x, dx: [n] of dtype; dx may alias dy. estimator: ewgs with delta, or tanh with delta its
// sharpness k and peak = (k / 2) / tanh(k / 2). Rounds as the forward pass did.
struct FakeQuantGradient {
  const void* dy;
  const void* x;
  void* dx;
  int64_t n;
  DType dtype;
  Quantizer quantizer;
  Rounding rounding;
  const int64_t* rng;
  Estimator estimator;
  float delta, peak;
};

template <class Isa>
void fake_quant(const FakeQuant& args, const OnCpu<Isa>& cpu);
void fake_quant(const FakeQuant& args, const OnCuda& cuda);

template <class Isa>
void fake_quant_gradient(const FakeQuantGradient& args, const OnCpu<Isa>& cpu);
void fake_quant_gradient(const FakeQuantGradient& args, const OnCuda& cuda);

}  // namespace bitpare
