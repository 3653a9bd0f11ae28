// The mean of |x|, which binarize and ternarize use as their scale.
#pragma once
#include "ops/call.h"

namespace bitpare::ops {

// float32, of the shape of a scale. threshold: the same, or none. No gradient.
Tensor mean_magnitude(const Tensor& x, const OptionalTensor& threshold, const Granularity& g);

// op: the name in the message.
void check_threshold(const char* op, const Tensor& x, const OptionalTensor& threshold,
                     const Granularity& granularity);

}  // namespace bitpare::ops
