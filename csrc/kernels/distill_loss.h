// The loss of a student's logits against labels and a teacher's logits, row by row, and its
// gradient, in one pass over both.
#pragma once
#include "kernels/backend.h"
#include "kernels/layout/distill_loss.h"
#include "math/distill_top.h"

namespace bitpare {

// student: [rows, classes]. teacher: [rows, classes], or with soft = top the values of
// [rows, top] classes, named by indices; logsumexp: [rows], of the teacher's logits / T, all of
// them. target: [rows], for hard = index and soft = decoupled, and rows with target = ignored are
// left out; labels: [rows, classes], for hard = probabilities. weight: [rows] or null.
// loss: [rows], each times its weight. factor: [1], 1 over the sum of the weights (0 if that is 0)
// with mean, else 1; total: [1], the sum of loss times factor.
// gradient: like student, or null; it is of loss times factor, times incoming ([rows], or [1], or
// null).
// scratch: layout::distill_floats(classes) for each of `workers`, or on CUDA
// layout::distill_floats_on_cuda(classes) for each row. sums: [chunks_of(rows)], scratch.
struct DistillLoss {
  const void* student;
  const void* teacher;
  DType student_type, teacher_type;
  const int64_t* indices;
  const float* logsumexp;
  const int64_t* target;
  const float* labels;
  const float* weight;
  int64_t rows, classes, top, ignored;
  DistillRule rule;
  bool mean;
  const float* incoming;
  int64_t incoming_rows;
  float* loss;
  float* factor;
  float* total;
  void* gradient;
  float* scratch;
  int64_t workers;
  float* sums;
};

template <class Isa>
void distill_loss(const DistillLoss& args, const OnCpu<Isa>& cpu);
void distill_loss(const DistillLoss& args, const OnCuda& cuda);

namespace math {

// Returns the factor of a row's gradient.
BITPARE_INLINE float scale_of_row(const DistillLoss& args, int64_t row) {
  float weight = row_weight(args.target, args.weight, args.ignored, row);
  float incoming = args.incoming ? args.incoming[args.incoming_rows > 1 ? row : 0] : 1.0f;
  return weight * args.factor[0] * incoming;
}

BITPARE_INLINE float factor_of(float weights, bool mean) {
  if (!mean) return 1.0f;
  return weights == 0.0f ? 0.0f : 1.0f / weights;
}

// A target that is not a class makes its row's loss NaN on CUDA; the CPU checks targets first.
BITPARE_INLINE bool is_class(const DistillLoss& args, int64_t target) {
  return target >= 0 && target < args.classes;
}

}  // namespace math

namespace {

// f.template operator()<hard, soft>() for the losses asked for.
template <class F>
void with_losses(const DistillRule& rule, F f) {
  auto soft = [&]<Hard kHard>() {
    switch (rule.soft) {
      case Soft::none:
        return f.template operator()<kHard, Soft::none>();
      case Soft::forward:
        return f.template operator()<kHard, Soft::forward>();
      case Soft::reverse:
        return f.template operator()<kHard, Soft::reverse>();
      case Soft::jensen_shannon:
        return f.template operator()<kHard, Soft::jensen_shannon>();
      case Soft::decoupled:
        return f.template operator()<kHard, Soft::decoupled>();
      case Soft::top:
        return f.template operator()<kHard, Soft::top>();
    }
  };
  if (rule.hard == Hard::none) return soft.template operator()<Hard::none>();
  if (rule.hard == Hard::index) return soft.template operator()<Hard::index>();
  soft.template operator()<Hard::probabilities>();
}

}  // namespace

}  // namespace bitpare
