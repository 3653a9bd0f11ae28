// The mean of |x| of each channel.
#pragma once
#include "kernels/backend.h"
#include "math/mean_magnitude.h"
#include "math/reduce.h"

namespace bitpare {

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
void mean_magnitude(const MeanMagnitude& args, const OnCpu<Isa>& cpu);
void mean_magnitude(const MeanMagnitude& args, const OnCuda& cuda);

}  // namespace bitpare
