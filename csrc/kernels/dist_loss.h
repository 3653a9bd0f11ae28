// One minus the correlation of a student's and a teacher's class probabilities, in each row and in
// each column, and its gradient with respect to the logits.
#pragma once
#include "kernels/backend.h"
#include "kernels/layout/dist_loss.h"

namespace bitpare {

// student, teacher: logits, [rows, classes], both of dtype. weight: [rows], or null. loss: [1],
// temperature^2 (between * mean of 1 - correlation over rows + within * that over columns);
// gradient: like student, times incoming ([1], or null), or null.
// scratch: layout::dist_floats(rows, classes).
struct DistLoss {
  const void* student;
  const void* teacher;
  DType dtype;
  const float* weight;
  int64_t rows, classes;
  float temperature, between, within;
  const float* incoming;
  float* loss;
  void* gradient;
  float* scratch;
};

template <class Isa>
void dist_loss(const DistLoss& args, const OnCpu<Isa>& cpu);
void dist_loss(const DistLoss& args, const OnCuda& cuda);

namespace math {

constexpr int kMeanTerms = 2;

BITPARE_INLINE float dist_weight(const DistLoss& args, int64_t row) {
  return args.weight ? args.weight[row] : 1.0f;
}

// Returns one over the sum of weights, or 0 if all are 0.
BITPARE_INLINE float per_weight(const layout::DistWorkspace& workspace) {
  return workspace.weights[0] > 0.0f ? 1.0f / workspace.weights[0] : 0.0f;
}

BITPARE_INLINE float dist_total(const DistLoss& args, const layout::DistWorkspace& workspace,
                                float rows, float columns) {
  float any = workspace.weights[0] > 0.0f ? 1.0f : 0.0f;
  float between = args.between * (rows * per_weight(workspace));
  float within = args.within * (any * columns / static_cast<float>(args.classes));
  return args.temperature * args.temperature * (between + within);
}

// The factors of the slopes of a row's and a column's correlation in the gradient of a probability,
// and the factor of the gradient of a logit.
struct DistSlopes {
  float row, column, logit;
};

BITPARE_INLINE DistSlopes dist_slopes(const DistLoss& args, const layout::DistWorkspace& workspace,
                                      int64_t row) {
  float weight = dist_weight(args, row), incoming = args.incoming ? args.incoming[0] : 1.0f;
  return {args.between * weight * per_weight(workspace),
          args.within * weight / static_cast<float>(args.classes), args.temperature * incoming};
}

}  // namespace math
}  // namespace bitpare
