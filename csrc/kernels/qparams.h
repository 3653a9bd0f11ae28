// Scales and zero points from ranges.
#pragma once
#include "kernels/backend.h"
#include "math/qparams.h"

namespace bitpare {

// low, high, scale, zero_point: [n].
struct QparamsFromRange {
  const float* low;
  const float* high;
  float* scale;
  int32_t* zero_point;
  int64_t n;
  RangeRule rule;
};

template <class Isa>
void qparams(const QparamsFromRange& args, const OnCpu<Isa>& cpu);
void qparams(const QparamsFromRange& args, const OnCuda& cuda);

}  // namespace bitpare
