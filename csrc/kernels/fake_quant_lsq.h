// The gradients of fake quantization with a learned scale and zero point, in one pass.
//   dx = dy inside the range, else 0
//   d scale = grad_scale * sum of dy * (level - x / scale) inside, dy * level outside
//   d zero_point = -grad_scale * scale * sum of dy outside
// with level = clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point.
#pragma once
#include "kernels/backend.h"
#include "math/fake_quant_lsq.h"
#include "math/reduce.h"

namespace bitpare {

constexpr int kLsqTerms = 2;

// dy, x, dx: [n] of dtype, laid out as `layout`; dx may alias dy. partial: scratch,
// [kLsqTerms, pieces_of(layout), channels]. scale_gradient, zero_point_gradient: [channels]; the
// latter may be null.
struct FakeQuantLsqGradient {
  const void* dy;
  const void* x;
  void* dx;
  DType dtype;
  Quantizer quantizer;
  ReduceLayout layout;
  float* partial;
  float* scale_gradient;
  float* zero_point_gradient;
  float grad_scale;
};

template <class Isa>
void fake_quant_lsq_gradient(const FakeQuantLsqGradient& args, const OnCpu<Isa>& cpu);
void fake_quant_lsq_gradient(const FakeQuantLsqGradient& args, const OnCuda& cuda);

}  // namespace bitpare
