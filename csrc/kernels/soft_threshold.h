// Soft thresholding: y[i] = sign(x[i]) max(|x[i]| - threshold, 0).
#pragma once
#include "kernels/backend.h"

namespace bitpare {

// x, y: [n] of dtype in one memory order, may alias. inside: [ceil(n / 64)] or null; its bits are 1
// where |x| is above the threshold or x is NaN: where the gradient passes.
struct SoftThreshold {
  const void* x;
  void* y;
  uint64_t* inside;
  int64_t n;
  DType dtype;
  float threshold;
};

template <class Isa>
void soft_threshold(const SoftThreshold& args, const OnCpu<Isa>& cpu);
void soft_threshold(const SoftThreshold& args, const OnCuda& cuda);

}  // namespace bitpare
