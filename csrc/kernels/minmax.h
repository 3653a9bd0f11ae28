// The range of each channel and, in the same read, a histogram.
#pragma once
#include "kernels/backend.h"
#include "math/minmax.h"
#include "math/reduce.h"

namespace bitpare {

constexpr int kMinMaxTerms = 3;

// x: laid out as `layout`, of dtype. low, high: [channels]; NaN where the channel holds one,
// +inf and -inf where it is empty. partial: scratch, [kMinMaxTerms, pieces_of(layout), channels].
//
// With a histogram: counts: [slots, channels, bins], zero at the start; the caller adds the slots.
// Bins divide [histogram_low[c], histogram_high[c]] evenly; values outside count in the outermost
// bins, NaN in none. On CUDA one slot is used.
struct MinMaxOf {
  const void* x;
  DType dtype;
  ReduceLayout layout;
  float* partial;
  float* low;
  float* high;
  int64_t* counts;
  const float* histogram_low;
  const float* histogram_high;
  int32_t bins;
  int64_t slots;
};

template <class Isa>
void minmax(const MinMaxOf& args, const OnCpu<Isa>& cpu);
void minmax(const MinMaxOf& args, const OnCuda& cuda);

}  // namespace bitpare
