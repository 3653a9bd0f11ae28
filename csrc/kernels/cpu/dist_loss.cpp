#include "kernels/dist_loss.h"

#include "kernels/cpu/rows.h"

namespace bitpare {
namespace {

using layout::DistWorkspace;

// Writes the softmax of a row, or equal probabilities if the row has no weight.
template <class T>
void soften(const DistLoss& args, const void* logits, int64_t row, float* out, float* partial) {
  int64_t n = args.classes;
  const T* z = static_cast<const T*>(logits) + row * n;
  if (math::dist_weight(args, row) == 0.0f) {
    Vec same = math::splat<Vec>(1.0f / static_cast<float>(n));
    return for_each_vector(n, [&](int64_t at, int64_t count) { write(out, at, count, same); });
  }
  for_each_vector(n, [&](int64_t at, int64_t count) { write(out, at, count, read(z, at, count)); });
  float most = greatest(out, n), inverse = 1.0f / args.temperature, sum;
  sum_row<1>(n, partial, &sum, [&](int64_t at, int64_t count, Vec* terms) {
    terms[0] = math::softened(read(out, at, count), most, inverse);
    write(out, at, count, terms[0]);
  });
  Vec share = math::splat<Vec>(1.0f / sum);
  for_each_vector(
      n, [&](int64_t at, int64_t count) { write(out, at, count, read(out, at, count) * share); });
}

// Writes a row's probabilities and their correlation.
template <class T>
void correlate_row(const DistLoss& args, const DistWorkspace& workspace, int64_t r) {
  int64_t n = args.classes;
  float *q = workspace.student + r * n, *p = workspace.teacher + r * n;
  float *partial = workspace.partial + r * layout::row_floats(n), sums[math::kUnitTerms];
  soften<T>(args, args.student, r, q, partial);
  soften<T>(args, args.teacher, r, p, partial);
  float mean = 1.0f / static_cast<float>(n);
  Vec means = math::splat<Vec>(mean), one = math::splat<Vec>(1.0f);
  sum_row<math::kUnitTerms>(n, partial, sums, [&](int64_t at, int64_t count, Vec* terms) {
    math::moments(read(q, at, count), read(p, at, count), means, means, one, terms);
  });
  Correlation<float> c = math::correlation_of(mean, mean, sums);
  __builtin_memcpy(workspace.row + r * math::kCorrelationNumbers, &c, sizeof c);
  workspace.row_losses[r] = math::dist_weight(args, r) * (1.0f - c.value);
}

// Sums the terms that f(row, terms) gives down columns at .. at + count - 1, in the order of
// math/reduce.h.
template <int kTerms, class F>
BITPARE_INLINE void sum_columns(const DistLoss& args, const DistWorkspace& workspace, int64_t at,
                                int64_t count, Vec* sums, F f) {
  int64_t pieces = layout::pieces_of_rows(args.rows), n = args.classes;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    Vec lanes[kTerms] = {};
    int64_t end = at_most((piece + 1) * kSumRows, args.rows);
    for (int64_t r = piece * kSumRows; r < end; ++r) {
      Vec terms[kTerms];
      f(r, terms);
      for (int t = 0; t < kTerms; ++t) lanes[t] += terms[t];
    }
    for (int t = 0; t < kTerms; ++t) {
      write(workspace.partial + (t * pieces + piece) * n, at, count, lanes[t]);
    }
  }
  for (int t = 0; t < kTerms; ++t) {
    float* first = workspace.partial + t * pieces * n + at;
    for (int64_t l = 0; l < count; ++l) math::fold_pairs<math::Sum>(t, first + l, pieces, n);
    sums[t] = read(first, 0, count);
  }
}

void correlate_columns(const DistLoss& args, const DistWorkspace& workspace, int64_t at,
                       int64_t count) {
  int64_t n = args.classes;
  Vec sums[math::kUnitTerms], share = math::splat<Vec>(math::per_weight(workspace));
  auto q = [&](int64_t r) { return read(workspace.student + r * n, at, count); };
  auto p = [&](int64_t r) { return read(workspace.teacher + r * n, at, count); };
  auto weight = [&](int64_t r) { return math::splat<Vec>(math::dist_weight(args, r)); };
  sum_columns<math::kMeanTerms>(args, workspace, at, count, sums, [&](int64_t r, Vec* terms) {
    terms[0] = q(r) * weight(r);
    terms[1] = p(r) * weight(r);
  });
  Vec means[math::kMeanTerms] = {sums[0] * share, sums[1] * share};
  sum_columns<math::kUnitTerms>(args, workspace, at, count, sums, [&](int64_t r, Vec* terms) {
    math::moments(q(r), p(r), means[0], means[1], weight(r), terms);
  });
  for (int64_t l = 0; l < count; ++l) {
    float column_sums[math::kUnitTerms];
    for (int t = 0; t < math::kUnitTerms; ++t) column_sums[t] = sums[t][l];
    Correlation<float> c = math::correlation_of(means[0][l], means[1][l], column_sums);
    float numbers[math::kCorrelationNumbers];
    __builtin_memcpy(numbers, &c, sizeof c);
    for (int k = 0; k < math::kCorrelationNumbers; ++k)
      workspace.column[k * n + at + l] = numbers[k];
    workspace.column_losses[at + l] = 1.0f - c.value;
  }
}

// The gradient through the softmax is q (g - sum of q g). The slopes g overwrite the teacher's row.
template <class T>
void write_gradient(const DistLoss& args, const DistWorkspace& workspace, int64_t r) {
  int64_t n = args.classes;
  float *q = workspace.student + r * n, *p = workspace.teacher + r * n;
  float *partial = workspace.partial + r * layout::row_floats(n), product;
  Correlation<float> c;
  __builtin_memcpy(&c, workspace.row + r * math::kCorrelationNumbers, sizeof c);
  Correlation<Vec> of_row = {math::splat<Vec>(c.student_mean), math::splat<Vec>(c.teacher_mean),
                             math::splat<Vec>(c.to_student), math::splat<Vec>(c.to_teacher),
                             math::splat<Vec>(c.value)};
  math::DistSlopes slopes = math::dist_slopes(args, workspace, r);
  Vec by_row = math::splat<Vec>(slopes.row), by_column = math::splat<Vec>(slopes.column);
  sum_row<1>(n, partial, &product, [&](int64_t at, int64_t count, Vec* terms) {
    Vec student = read(q, at, count), teacher = read(p, at, count);
    auto number = [&](int k) { return read(workspace.column + k * n, at, count); };
    Correlation<Vec> of_column = {number(0), number(1), number(2), number(3), number(4)};
    Vec g = by_row * math::correlation_slope(student, teacher, of_row) +
            by_column * math::correlation_slope(student, teacher, of_column);
    write(p, at, count, g);
    terms[0] = student * g;
  });
  T* gradient = static_cast<T*>(args.gradient) + r * n;
  Vec all = math::splat<Vec>(product), scale = math::splat<Vec>(slopes.logit);
  for_each_vector(n, [&](int64_t at, int64_t count) {
    write(gradient, at, count, scale * read(q, at, count) * (read(p, at, count) - all));
  });
}

}  // namespace

// Goes over rows, then over columns, then over rows again for the gradient.
template <>
void dist_loss(const DistLoss& args, const OnCpu<BITPARE_ISA>& cpu) {
  DistWorkspace workspace = layout::dist_workspace(args.scratch, args.rows, args.classes);
  int64_t rows = args.rows, n = args.classes, strips = (n + kWidth - 1) / kWidth;
  int64_t some_rows = 1 + (1 << 14) / n, some_strips = 1 + (1 << 12) / rows;
  for (int64_t r = 0; r < rows; ++r) workspace.row_losses[r] = math::dist_weight(args, r);
  workspace.weights[0] = sum_of(workspace.row_losses, rows, workspace.partial);
  with_type(args.dtype, [&]<class T>(T*) {
    parallel(cpu.parallel_for, rows, some_rows, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) correlate_row<T>(args, workspace, r);
    });
    parallel(cpu.parallel_for, strips, some_strips, [&](int64_t first, int64_t last) {
      for (int64_t s = first; s < last; ++s) {
        correlate_columns(args, workspace, s * kWidth, at_most((s + 1) * kWidth, n) - s * kWidth);
      }
    });
    float of_rows = sum_of(workspace.row_losses, rows, workspace.partial);
    float of_columns = sum_of(workspace.column_losses, n, workspace.partial);
    args.loss[0] = math::dist_total(args, workspace, of_rows, of_columns);
    if (!args.gradient) return;
    parallel(cpu.parallel_for, rows, some_rows, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) write_gradient<T>(args, workspace, r);
    });
  });
}

}  // namespace bitpare
