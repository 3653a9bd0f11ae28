// How far the class probabilities of a student are from being correlated to a teacher's, in each
// row and in each column, and its gradient in the logits.
#pragma once
#include "kernels/backend.h"
#include "math/dist_loss.h"

namespace bitpare {

// student, teacher: logits, [rows, classes], both of dtype. weight: [rows], or null. loss: [1],
// temperature^2 (between * mean of 1 - correlation over rows + within * that over columns);
// gradient: like student, times incoming ([1], or null), or null.
// Scratch: dist_scratch(rows, classes) floats.
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

// The parts of the workspace.
struct DistRoom {
  float* student;     // [rows, classes]: probabilities
  float* teacher;     // the same; then the slopes
  float* row;         // [rows, kCorrelationNumbers]
  float* column;      // [kCorrelationNumbers, classes]
  float* of_rows;     // [rows]: 1 - correlation, times the weight
  float* of_columns;  // [classes]: 1 - correlation
  float* total;       // [1]: the sum of weights
  float* sums;        // sums of pieces: of a row, of a column, of all
};

BITPARE_INLINE int64_t pieces_of_rows(int64_t rows) { return (rows + kSumRows - 1) / kSumRows; }

// Returns how many floats each row's sums take.
BITPARE_INLINE int64_t row_sums(int64_t classes) { return kUnitTerms * chunks_of(classes); }

BITPARE_INLINE int64_t dist_scratch(int64_t rows, int64_t classes) {
  int64_t by_row = rows * row_sums(classes),
          by_column = kUnitTerms * pieces_of_rows(rows) * classes;
  int64_t sums = by_row > by_column ? by_row : by_column;
  return 2 * rows * classes + kCorrelationNumbers * (rows + classes) + rows + classes + 1 + sums +
         chunks_of(rows);
}

BITPARE_INLINE DistRoom room_of(const DistLoss& args) {
  DistRoom room = {};
  room.student = args.scratch;
  room.teacher = room.student + args.rows * args.classes;
  room.row = room.teacher + args.rows * args.classes;
  room.column = room.row + kCorrelationNumbers * args.rows;
  room.of_rows = room.column + kCorrelationNumbers * args.classes;
  room.of_columns = room.of_rows + args.rows;
  room.total = room.of_columns + args.classes;
  room.sums = room.total + 1;
  return room;
}

BITPARE_INLINE float dist_weight(const DistLoss& args, int64_t row) {
  return args.weight ? args.weight[row] : 1.0f;
}

// One over the sum of weights, or 0 where no row has any.
BITPARE_INLINE float per_weight(const DistRoom& room) {
  return room.total[0] > 0.0f ? 1.0f / room.total[0] : 0.0f;
}

BITPARE_INLINE float dist_total(const DistLoss& args, const DistRoom& room, float rows,
                                float columns) {
  float any = room.total[0] > 0.0f ? 1.0f : 0.0f;
  float between = args.between * (rows * per_weight(room));
  float within = args.within * (any * columns / static_cast<float>(args.classes));
  return args.temperature * args.temperature * (between + within);
}

// The factors of the slopes of a row's and of the columns' correlations in the gradient of
// a probability, and that in the gradient of a logit.
struct DistSlopes {
  float row, column, logit;
};

BITPARE_INLINE DistSlopes dist_slopes(const DistLoss& args, const DistRoom& room, int64_t row) {
  float weight = dist_weight(args, row), incoming = args.incoming ? args.incoming[0] : 1.0f;
  return {args.between * weight * per_weight(room),
          args.within * weight / static_cast<float>(args.classes), args.temperature * incoming};
}

}  // namespace math
}  // namespace bitpare
