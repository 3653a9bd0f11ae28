// Histograms that are kept over batches, and widen exactly as values grow.
#pragma once
#include "kernels/backend.h"
#include "math/histogram.h"

namespace bitpare {

constexpr int kLargestTerms = 2;

// Widens each channel's histogram to hold the batch's largest magnitude, counts the batch into it,
// and adds one to `skipped` where the batch held a value that is not finite. x: laid out as
// `layout`, of dtype. counts: [channels, bins]. limit, skipped: [channels]. partial: scratch,
// [kLargestTerms, pieces_of(layout), channels]. largest: scratch, [channels], for CUDA alone. On
// the CPU `slots` threads share the channels if there are few; all but the first count into shares:
// scratch, [slots - 1, channels, bins].
struct ObserveHistogram {
  const void* x;
  DType dtype;
  ReduceLayout layout;
  int64_t* counts;
  float* limit;
  int64_t* skipped;
  int32_t bins;
  float* partial;
  float* largest;
  int64_t* shares;
  int64_t slots;
};

template <class Isa>
void observe_histogram(const ObserveHistogram& args, const OnCpu<Isa>& cpu);
void observe_histogram(const ObserveHistogram& args, const OnCuda& cuda);

}  // namespace bitpare
