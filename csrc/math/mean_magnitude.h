// The mean of |x|, of all elements or of those above a threshold: XNOR-Net's scale of binary
// weights (Rastegari et al., 2016, eq. 6) and that of ternary weight networks (Li and Liu, 2016).
#pragma once
#include "math/value.h"

namespace bitpare::math {

// The terms one element adds to the mean magnitude: its magnitude and 1, where above the threshold.
template <class V>
struct MagnitudeTerms {
  V sum, count;
};

template <class V>
BITPARE_INLINE MagnitudeTerms<V> magnitude_terms(V x, V threshold) {
  V magnitude = absolute(x), zero = splat<V>(0.0f);
  return {magnitude <= threshold ? zero : magnitude,
          magnitude <= threshold ? zero : splat<V>(1.0f)};
}

BITPARE_INLINE float mean_of(float sum, float count) { return count > 0.0f ? sum / count : 0.0f; }

}  // namespace bitpare::math
