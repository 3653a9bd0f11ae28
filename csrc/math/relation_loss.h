// Relations between the samples of a batch: their distances, and the angles between them. In
// double, because angles come from differences of squared distances. V is double or a vector of
// doubles.
#pragma once
#include "math/value.h"

namespace bitpare {

// Elements of one sum go to lane k % kDoubleLanes in ascending order; the lanes are folded by
// halves. Sums of rows are added in ascending order.
constexpr int64_t kDoubleLanes = 8;
// The lanes of the sum over a sample's features.
constexpr int64_t kFeatureLanes = 32;

namespace math {

BITPARE_INLINE double fold_doubles(double* lanes, int64_t count) {
  for (int64_t half = count / 2; half > 0; half /= 2) {
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

// Returns one over a distance, given its square; 0 if two samples coincide.
BITPARE_INLINE double inverse_distance(double squares) {
  return squares < 1e-12 ? 0.0 : 1.0 / __builtin_sqrt(squares);
}

// Smooth L1; slope: d / dx.
template <class V>
BITPARE_INLINE V smooth_apart(V x, V* slope) {
  V one = V{} + 1.0, half = V{} + 0.5;
  V magnitude = x < V{} ? -x : x;
  *slope = magnitude < one ? x : x < V{} ? -one : one;
  return magnitude < one ? half * x * x : magnitude - half;
}

// The cosine of the angle at sample i between j and k, from squared distances and inverse ones.
template <class V>
BITPARE_INLINE V cosine_at(V ij, V ik, V jk, V inverse_ij, V inverse_ik) {
  return (V{} + 0.5) * (ij + ik - jk) * inverse_ij * inverse_ik;
}

// Returns what an angle's slope adds to the slope of the squared distance ij, counting (i, k, j) as
// well, or of jk.
template <class V>
BITPARE_INLINE V slope_of_side(V slope, V cosine, V inverse_ij, V inverse_ik) {
  return slope * inverse_ij * (inverse_ik - cosine * inverse_ij);
}
template <class V>
BITPARE_INLINE V slope_of_opposite(V slope, V inverse_ij, V inverse_ik) {
  return (V{} - 0.5) * slope * inverse_ij * inverse_ik;
}

}  // namespace math
}  // namespace bitpare
