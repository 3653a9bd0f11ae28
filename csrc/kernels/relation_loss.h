// How far the relations between a student's features of a batch's samples are from those between
// the teacher's: distances over their mean, and angles; with the gradient.
#pragma once
#include "kernels/backend.h"
#include "math/relation_loss.h"

namespace bitpare {

// student: [samples, student_size]; teacher: [samples, teacher_size]. loss: [1], distance * the
// mean over pairs + angle * that over triples; gradient: like student, times incoming ([1], or
// null), or null. Samples are so few that samples^3 steps are affordable.
// Scratch: relation_scratch(samples) doubles.
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

// Matrices have rows of stride() numbers; those past the samples are 0.
struct Relations {
  double* squares;  // of distances
  double* inverse;  // distances
  double* sum;      // [samples]: of a row's distances; then [1] of all
  double* others;   // [samples]: how many are apart from a sample; then [1] of all
};

struct RelationRoom {
  Relations student, teacher;
  double* side;      // [j, i]: d loss of angles / d squares[i, j], of those at i
  double* opposite;  // [j, k]: the same of those at all others
  double* pairs;     // [samples]: of a row's distances, the loss; then [1] the sum
  double* along;     // [samples]: of a row's distances, slope times distance; then [1] the sum
  double* triples;   // [samples, samples]: of the angles, the loss
  double* loss;      // [samples]: the sum of those; then [1] the sum
};

BITPARE_INLINE int64_t stride_of(int64_t samples) {
  return (samples + kDoubleLanes - 1) / kDoubleLanes * kDoubleLanes;
}

BITPARE_INLINE int64_t relation_scratch(int64_t samples) {
  return 7 * samples * stride_of(samples) + 7 * (samples + 1);
}

BITPARE_INLINE RelationRoom room_of(const RelationLoss& args) {
  int64_t matrix = args.samples * stride_of(args.samples), row = args.samples + 1;
  double *m = args.scratch, *v = m + 7 * matrix;
  RelationRoom room = {};
  room.student = {m, m + matrix, v, v + row};
  room.teacher = {m + 2 * matrix, m + 3 * matrix, v + 2 * row, v + 3 * row};
  room.side = m + 4 * matrix;
  room.opposite = m + 5 * matrix;
  room.triples = m + 6 * matrix;
  room.pairs = v + 4 * row;
  room.along = v + 5 * row;
  room.loss = v + 6 * row;
  return room;
}

// A matrix's element.
BITPARE_INLINE double& element(double* matrix, const RelationLoss& args, int64_t i, int64_t j) {
  return matrix[i * stride_of(args.samples) + j];
}

// values[samples]: the sum of those before.
BITPARE_INLINE void total_of(double* values, int64_t samples) {
  double sum = 0.0;
  for (int64_t i = 0; i < samples; ++i) sum += values[i];
  values[samples] = sum;
}

// One over the mean distance between samples that are apart; 0 if none are.
BITPARE_INLINE double per_mean(const RelationLoss& args, const Relations& of) {
  double sum = of.sum[args.samples];
  return sum > 0.0 ? of.others[args.samples] / sum : 0.0;
}

// A pair's distance in the student over the mean, that in the teacher subtracted.
BITPARE_INLINE double pair_apart(const RelationLoss& args, const RelationRoom& room, int64_t i,
                                 int64_t j) {
  double s = __builtin_sqrt(element(room.student.squares, args, i, j));
  double t = __builtin_sqrt(element(room.teacher.squares, args, i, j));
  return s * per_mean(args, room.student) - t * per_mean(args, room.teacher);
}

BITPARE_INLINE double relation_total(const RelationLoss& args, const RelationRoom& room) {
  double n = static_cast<double>(args.samples), loss = 0.0;
  if (args.distance != 0.0) loss += args.distance * (room.pairs[args.samples] / (n * n));
  if (args.angle != 0.0) loss += args.angle * (room.loss[args.samples] / (n * n * n));
  return loss;
}

// Returns the factor of x_i - x_j in the gradient of sample i.
BITPARE_INLINE float pull(const RelationLoss& args, const RelationRoom& room, int64_t i,
                          int64_t j) {
  double n = static_cast<double>(args.samples), slope, sum = 0.0;
  double inverse = element(room.student.inverse, args, i, j);
  if (args.distance != 0.0 && inverse > 0.0) {
    smooth_apart(pair_apart(args, room, i, j), &slope);
    double per = per_mean(args, room.student), others = room.student.others[args.samples];
    // The parts of the distance itself, and of the mean.
    double of_distance = slope * per - room.along[args.samples] * per * per / others;
    sum += args.distance / (n * n) * of_distance * inverse;
  }
  if (args.angle != 0.0) {
    double angles = element(room.side, args, i, j) + element(room.side, args, j, i);
    angles += element(room.opposite, args, i, j) + element(room.opposite, args, j, i);
    sum += args.angle / (n * n * n) * angles;
  }
  return static_cast<float>(2.0 * sum) * (args.incoming ? args.incoming[0] : 1.0f);
}

}  // namespace math
}  // namespace bitpare
