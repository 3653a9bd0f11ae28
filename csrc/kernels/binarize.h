// Quantization to two or three levels times a scale, its gradients, and the mean magnitude that is
// the usual scale.
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

constexpr int kMagnitudeTerms = 2;

// mean[c] = mean of |x| over the elements of channel c with |x| > threshold[c], all of them where
// threshold is null; 0 where there are none. x: laid out as `layout`. threshold, mean: [channels].
// partial: scratch, [kMagnitudeTerms, pieces_of(layout), channels].
struct MeanMagnitude {
  const void* x;
  DType dtype;
  const float* threshold;
  ReduceLayout layout;
  float* partial;
  float* mean;
};

template <class Isa>
void binarize(const Binarize& args, const OnCpu<Isa>& cpu);
void binarize(const Binarize& args, const OnCuda& cuda);

template <class Isa>
void binarize_gradient(const BinarizeGradient& args, const OnCpu<Isa>& cpu);
void binarize_gradient(const BinarizeGradient& args, const OnCuda& cuda);

template <class Isa>
void mean_magnitude(const MeanMagnitude& args, const OnCpu<Isa>& cpu);
void mean_magnitude(const MeanMagnitude& args, const OnCuda& cuda);

}  // namespace bitpare
