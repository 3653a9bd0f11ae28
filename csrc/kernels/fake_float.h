// Rounding to a small floating point format, in units of a scale.
//   y[i] = round_to_float(x[i] / scale) * scale, saturating at format.max
#pragma once
#include "kernels/backend.h"
#include "math/fake_float.h"

namespace bitpare {

// x, y: [n] of dtype in one memory order, may alias. inside: [ceil(n / 64)] or null; its bits are 0
// where x saturated. rng: int64[2], seed and step, where the rounding is stochastic, else null.
struct FakeFloat {
  const void* x;
  void* y;
  uint64_t* inside;
  int64_t n;
  DType dtype;
  Quantizer quantizer;
  FloatFormat format;
  Rounding rounding;
  const int64_t* rng;
};

template <class Isa>
void fake_float(const FakeFloat& args, const OnCpu<Isa>& cpu);
void fake_float(const FakeFloat& args, const OnCuda& cuda);

}  // namespace bitpare
