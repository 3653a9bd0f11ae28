// Quantization to two or three levels times a scale, and its gradients.
//   y[i] = level(x[i]) * scale
#pragma once
#include "kernels/backend.h"
#include "math/binarize.h"
#include "math/fake_quant.h"
#include "math/reduce.h"

namespace bitpare {

// x, y: [n] of dtype, may alias. quantizer: the scales and, for ternary levels, the thresholds.
struct Binarize {
  const void* x;
  void* y;
  int64_t n;
  DType dtype;
  Quantizer quantizer;
  Levels levels;
};

// dx = dy, with `clipped` only where |x| is within the clip; d scale = sum of dy * level(x).
// dy, x, dx: [n] of dtype, laid out as `layout`; dx may alias dy. partial: scratch,
// [1, pieces_of(layout), channels]. scale_gradient: [channels].
struct BinarizeGradient {
  const void* dy;
  const void* x;
  void* dx;
  DType dtype;
  Quantizer quantizer;
  Levels levels;
  bool clipped;
  ReduceLayout layout;
  float* partial;
  float* scale_gradient;
};

template <class Isa>
void binarize(const Binarize& args, const OnCpu<Isa>& cpu);
void binarize(const Binarize& args, const OnCuda& cuda);

template <class Isa>
void binarize_gradient(const BinarizeGradient& args, const OnCpu<Isa>& cpu);
void binarize_gradient(const BinarizeGradient& args, const OnCuda& cuda);

}  // namespace bitpare
