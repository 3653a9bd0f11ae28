// Correlations of a student's and a teacher's class probabilities, along a row (between classes)
// or down a column (within a class).
#pragma once
#include "math/exp.h"
#include "math/feature_loss.h"

namespace bitpare {

// The unit vector of a row or a column. Numbers that are all the same but for rounding have the
// unit vector 0, the correlation 0, and no gradient.
template <class V>
struct Correlation {
  V student_mean, teacher_mean, to_student, to_teacher, value;
};

namespace math {

constexpr int kCorrelationNumbers = 5;

// exp of a logit over the temperature, relative to the row's largest.
template <class V>
BITPARE_INLINE V softened(V z, float most, float inverse_temperature) {
  return exponential_below_one((z - splat<V>(most)) * splat<V>(inverse_temperature));
}

// Gives the terms of the sums of kUnitTerms, each times its weight.
template <class V>
BITPARE_INLINE void moments(V q, V p, V student_mean, V teacher_mean, V weight, V* terms) {
  V a = q - student_mean, b = p - teacher_mean;
  unit_terms(a, b, terms);
  for (int t = 0; t < kUnitTerms; ++t) terms[t] = terms[t] * weight;
}

BITPARE_INLINE Correlation<float> correlation_of(float student_mean, float teacher_mean,
                                                 const float* sums) {
  auto inverse = [](float squares) {
    return squares < 1e-12f ? 0.0f : 1.0f / __builtin_sqrtf(squares);
  };
  Correlation<float> c = {student_mean, teacher_mean, inverse(sums[0]), inverse(sums[1]), 0.0f};
  c.value = sums[2] * c.to_student * c.to_teacher;
  return c;
}

// d (1 - correlation) / dq, but for q's weight.
template <class V>
BITPARE_INLINE V correlation_slope(V q, V p, const Correlation<V>& c) {
  V a = (q - c.student_mean) * c.to_student, b = (p - c.teacher_mean) * c.to_teacher;
  return c.to_student * (c.value * a - b);
}

}  // namespace math
}  // namespace bitpare
