// The workspace of relation_loss. Matrices have rows of stride_of(samples) numbers; those past the
// samples are 0.
#pragma once
#include "math/relation_loss.h"

namespace bitpare::layout {

struct Relations {
  double* squares;  // [samples, samples]: squared distances
  double* inverse;  // [samples, samples]: inverse distances
  double* sum;      // [samples]: sums of a row's distances; then [1] the sum of all
  double* others;   // [samples]: how many are apart from a sample; then [1] the sum of all
};

struct RelationWorkspace {
  Relations student, teacher;
  double* side;      // [j, i]: d loss of angles / d squares[i, j], of those at i
  double* opposite;  // [j, k]: the same of those at all others
  double* pairs;     // [samples]: the loss of a row's distances; then [1] the sum
  double* along;     // [samples]: slope times distance, summed over a row; then [1] the sum
  double* triples;   // [samples, samples]: the loss of the angles
  double* loss;      // [samples]: sums of those; then [1] the sum
};

BITPARE_INLINE int64_t stride_of(int64_t samples) {
  return (samples + kDoubleLanes - 1) / kDoubleLanes * kDoubleLanes;
}

BITPARE_INLINE int64_t relation_doubles(int64_t samples) {
  return 7 * samples * stride_of(samples) + 7 * (samples + 1);
}

BITPARE_INLINE RelationWorkspace relation_workspace(double* scratch, int64_t samples) {
  int64_t matrix = samples * stride_of(samples), row = samples + 1;
  double *m = scratch, *v = m + 7 * matrix;
  RelationWorkspace w = {};
  w.student = {m, m + matrix, v, v + row};
  w.teacher = {m + 2 * matrix, m + 3 * matrix, v + 2 * row, v + 3 * row};
  w.side = m + 4 * matrix;
  w.opposite = m + 5 * matrix;
  w.triples = m + 6 * matrix;
  w.pairs = v + 4 * row;
  w.along = v + 5 * row;
  w.loss = v + 6 * row;
  return w;
}

BITPARE_INLINE double& element(double* matrix, int64_t samples, int64_t i, int64_t j) {
  return matrix[i * stride_of(samples) + j];
}

}  // namespace bitpare::layout
