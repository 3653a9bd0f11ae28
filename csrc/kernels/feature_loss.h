// The distance of a student's features from a teacher's, and its gradient, in one pass over both
// for mse and l1, in two for unit vectors.
#pragma once
#include "kernels/backend.h"
#include "math/feature_loss.h"

namespace bitpare {

// student, teacher: [rows, n], both of dtype. loss: [1], the mean over rows (cosine, normalized) or
// elements. gradient: like student, times incoming ([1], or null), or null.
// Scratch: partial: feature_partials(rows, n) floats; found: [rows]; sums: [rows].
struct FeatureLoss {
  const void* student;
  const void* teacher;
  DType dtype;
  FeatureKind kind;
  int64_t rows, n;
  const float* incoming;
  float* loss;
  void* gradient;
  float* partial;
  FeatureRow* found;
  float* sums;
};

template <class Isa>
void feature_loss(const FeatureLoss& args, const OnCpu<Isa>& cpu);
void feature_loss(const FeatureLoss& args, const OnCuda& cuda);

namespace math {

BITPARE_INLINE ReduceLayout layout_of_rows(const FeatureLoss& args) {
  if (of_rows(args.kind)) return {1, args.rows, args.n};
  return {1, 1, args.rows * args.n};
}

BITPARE_INLINE int64_t feature_partials(FeatureKind kind, int64_t rows, int64_t n) {
  if (!of_rows(kind)) return chunks_of(rows * n);
  ReduceLayout all = {1, 1, rows}, each = {1, rows, n};
  int64_t first = kUnitTerms * pieces_of(each) * rows, second = pieces_of(all);
  return first > second ? first : second;
}

// Returns the factor of the sum over all.
BITPARE_INLINE float feature_factor(const FeatureLoss& args) {
  int64_t count = of_rows(args.kind) ? args.rows : args.rows * args.n;
  float one = args.kind == FeatureKind::normalized ? 2.0f : 1.0f;
  return count == 0 ? 0.0f : one / static_cast<float>(count);
}

}  // namespace math
}  // namespace bitpare
