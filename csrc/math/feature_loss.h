// Distances between features: by elements, or as unit vectors.
#pragma once
#include "math/reduce.h"

namespace bitpare {

// cosine: 1 - cos of each row, half the squared distance of the unit vectors; normalized: twice
// that.
enum class FeatureKind : int32_t { mse, l1, cosine, normalized };

// The numbers of a row that make unit vectors of student and teacher, and their cosine. A row
// without length has the unit vector 0, and no gradient.
struct FeatureRow {
  float student, teacher, cosine;
};

namespace math {

BITPARE_INLINE constexpr bool of_rows(FeatureKind kind) {
  return kind == FeatureKind::cosine || kind == FeatureKind::normalized;
}

// Returns an element's share of the loss. slope: d share / d student.
template <FeatureKind kKind, class V>
BITPARE_INLINE V element_apart(V student, V teacher, V* slope) {
  V d = student - teacher, zero = splat<V>(0.0f), one = splat<V>(1.0f);
  if constexpr (kKind == FeatureKind::mse) {
    *slope = d + d;
    return d * d;
  }
  *slope = d > zero ? one : d < zero ? -one : d;
  return absolute(d);
}

BITPARE_INLINE float inverse_length(float squares) {
  return squares < 1e-24f ? 0.0f : 1.0f / __builtin_sqrtf(squares);
}

constexpr int kUnitTerms = 3;

// Gives the terms of the sums over a row.
template <class V>
BITPARE_INLINE void unit_terms(V student, V teacher, V* terms) {
  terms[0] = student * student;
  terms[1] = teacher * teacher;
  terms[2] = student * teacher;
}

BITPARE_INLINE FeatureRow feature_row(const float* sums) {
  FeatureRow row = {inverse_length(sums[0]), inverse_length(sums[1]), 0.0f};
  row.cosine = sums[2] * row.student * row.teacher;
  return row;
}

// An element's share in half the squared distance of the unit vectors.
template <class V>
BITPARE_INLINE V unit_apart(V student, V teacher, V to_student, V to_teacher, V cosine, V* slope) {
  V s = student * to_student, t = teacher * to_teacher, d = s - t;
  *slope = to_student * (cosine * s - t);
  return splat<V>(0.5f) * d * d;
}

}  // namespace math
}  // namespace bitpare
