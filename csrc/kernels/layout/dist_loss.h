// The workspace of dist_loss.
#pragma once
#include "math/dist_loss.h"

namespace bitpare::layout {

struct DistWorkspace {
  float* student;        // [rows, classes]: probabilities
  float* teacher;        // [rows, classes]: probabilities, then slopes
  float* row;            // [rows, kCorrelationNumbers]
  float* column;         // [kCorrelationNumbers, classes]
  float* row_losses;     // [rows]: 1 - correlation, times the weight
  float* column_losses;  // [classes]: 1 - correlation
  float* weights;        // [1]: the sum of weights
  float* partial;        // sums of pieces, of a row, of a column or of all
};

BITPARE_INLINE int64_t pieces_of_rows(int64_t rows) { return (rows + kSumRows - 1) / kSumRows; }

// Returns how many floats the partial sums of one row take.
BITPARE_INLINE int64_t row_floats(int64_t classes) {
  return math::kUnitTerms * math::chunks_of(classes);
}

BITPARE_INLINE int64_t dist_floats(int64_t rows, int64_t classes) {
  int64_t by_row = rows * row_floats(classes),
          by_column = math::kUnitTerms * pieces_of_rows(rows) * classes;
  int64_t partial = by_row > by_column ? by_row : by_column;
  return 2 * rows * classes + math::kCorrelationNumbers * (rows + classes) + rows + classes + 1 +
         partial + math::chunks_of(rows);
}

BITPARE_INLINE DistWorkspace dist_workspace(float* scratch, int64_t rows, int64_t classes) {
  DistWorkspace w = {};
  w.student = scratch;
  w.teacher = w.student + rows * classes;
  w.row = w.teacher + rows * classes;
  w.column = w.row + math::kCorrelationNumbers * rows;
  w.row_losses = w.column + math::kCorrelationNumbers * classes;
  w.column_losses = w.row_losses + rows;
  w.weights = w.column_losses + classes;
  w.partial = w.weights + 1;
  return w;
}

}  // namespace bitpare::layout
