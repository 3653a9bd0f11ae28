// The difference between the relations of a batch's samples in a student's and in a teacher's
// features, and its gradient. Relations are distances, divided by their mean, and angles.
#pragma once
#include "kernels/backend.h"
#include "kernels/layout/relation_loss.h"

namespace bitpare {

// student: [samples, student_size]; teacher: [samples, teacher_size]. loss: [1], distance * the
// mean over pairs + angle * that over triples; gradient: like student, times incoming ([1], or
// null), or null. Samples are so few that samples^3 steps are affordable.
// scratch: layout::relation_doubles(samples).
struct RelationLoss {
  const float* student;
  const float* teacher;
  int64_t samples, student_size, teacher_size;
  double distance, angle;
  const float* incoming;
  float* loss;
  float* gradient;
  double* scratch;
};

template <class Isa>
void relation_loss(const RelationLoss& args, const OnCpu<Isa>& cpu);
void relation_loss(const RelationLoss& args, const OnCuda& cuda);

namespace math {

// Writes the sum of values[0 .. samples - 1] to values[samples].
BITPARE_INLINE void total_of(double* values, int64_t samples) {
  double sum = 0.0;
  for (int64_t i = 0; i < samples; ++i) sum += values[i];
  values[samples] = sum;
}

// Returns one over the mean distance between samples that differ, or 0 if none do.
BITPARE_INLINE double per_mean(const RelationLoss& args, const layout::Relations& of) {
  double sum = of.sum[args.samples];
  return sum > 0.0 ? of.others[args.samples] / sum : 0.0;
}

// Returns a pair's distance over the mean, in the student minus in the teacher.
BITPARE_INLINE double pair_apart(const RelationLoss& args,
                                 const layout::RelationWorkspace& workspace, int64_t i, int64_t j) {
  double s = __builtin_sqrt(layout::element(workspace.student.squares, args.samples, i, j));
  double t = __builtin_sqrt(layout::element(workspace.teacher.squares, args.samples, i, j));
  return s * per_mean(args, workspace.student) - t * per_mean(args, workspace.teacher);
}

BITPARE_INLINE double relation_total(const RelationLoss& args,
                                     const layout::RelationWorkspace& workspace) {
  double n = static_cast<double>(args.samples), loss = 0.0;
  if (args.distance != 0.0) loss += args.distance * (workspace.pairs[args.samples] / (n * n));
  if (args.angle != 0.0) loss += args.angle * (workspace.loss[args.samples] / (n * n * n));
  return loss;
}

// Returns the factor of x_i - x_j in the gradient of sample i.
BITPARE_INLINE float pull(const RelationLoss& args, const layout::RelationWorkspace& workspace,
                          int64_t i, int64_t j) {
  double n = static_cast<double>(args.samples), slope, sum = 0.0;
  double inverse = layout::element(workspace.student.inverse, args.samples, i, j);
  if (args.distance != 0.0 && inverse > 0.0) {
    smooth_apart(pair_apart(args, workspace, i, j), &slope);
    double per = per_mean(args, workspace.student), others = workspace.student.others[args.samples];
    // The parts of the distance itself, and of the mean.
    double of_distance = slope * per - workspace.along[args.samples] * per * per / others;
    sum += args.distance / (n * n) * of_distance * inverse;
  }
  if (args.angle != 0.0) {
    double angles = layout::element(workspace.side, args.samples, i, j) +
                    layout::element(workspace.side, args.samples, j, i);
    angles += layout::element(workspace.opposite, args.samples, i, j) +
              layout::element(workspace.opposite, args.samples, j, i);
    sum += args.angle / (n * n * n) * angles;
  }
  return static_cast<float>(2.0 * sum) * (args.incoming ? args.incoming[0] : 1.0f);
}

}  // namespace math
}  // namespace bitpare
