// The distance of a student's features from a teacher's, and its gradient, in one pass over both
// for mse and l1, in two for unit vectors.
#pragma once
#include "kernels/backend.h"
#include "kernels/layout/feature_loss.h"

namespace bitpare {

// student, teacher: [rows, n], both of dtype. loss: [1], the mean over rows (cosine, normalized) or
// elements. gradient: like student, times incoming ([1], or null), or null.
// partial: layout::feature_floats(kind, rows, n) floats of scratch; units, sums: [rows], scratch.
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
  FeatureRow* units;
  float* sums;
};

template <class Isa>
void feature_loss(const FeatureLoss& args, const OnCpu<Isa>& cpu);
void feature_loss(const FeatureLoss& args, const OnCuda& cuda);

namespace math {

// Returns the factor of the sum over all.
BITPARE_INLINE float feature_factor(const FeatureLoss& args) {
  int64_t count = of_rows(args.kind) ? args.rows : args.rows * args.n;
  float one = args.kind == FeatureKind::normalized ? 2.0f : 1.0f;
  return count == 0 ? 0.0f : one / static_cast<float>(count);
}

}  // namespace math
}  // namespace bitpare
