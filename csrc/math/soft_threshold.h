// Soft thresholding: the proximal operator of threshold * |x| (Donoho, "De-noising by
// soft-thresholding", 1995, eq. 1.4).
#pragma once
#include "math/value.h"

namespace bitpare::math {

// sign(x) max(|x| - threshold, 0); NaN stays NaN, and zeros are +0.
template <class V>
BITPARE_INLINE V soft_threshold(V x, V threshold) {
  return x - clamp(x, -threshold, threshold);
}

}  // namespace bitpare::math
