// The shapes that feature_loss reduces over.
#pragma once
#include "math/feature_loss.h"

namespace bitpare::layout {

BITPARE_INLINE ReduceLayout feature_rows(FeatureKind kind, int64_t rows, int64_t n) {
  if (math::of_rows(kind)) return {1, rows, n};
  return {1, 1, rows * n};
}

// Returns how many floats the partial sums take.
BITPARE_INLINE int64_t feature_floats(FeatureKind kind, int64_t rows, int64_t n) {
  if (!math::of_rows(kind)) return math::chunks_of(rows * n);
  ReduceLayout all = {1, 1, rows}, each = {1, rows, n};
  int64_t first = math::kUnitTerms * math::pieces_of(each) * rows, second = math::pieces_of(all);
  return first > second ? first : second;
}

}  // namespace bitpare::layout
