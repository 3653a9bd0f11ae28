#include "kernels/cuda/rows.h"
#include "kernels/dist_loss.h"

namespace bitpare {
namespace {

using layout::DistWorkspace;
using Shared = SharedRow<math::kUnitTerms>;

template <class T>
__device__ inline void soften(Shared& shared, const DistLoss& args, const void* logits, float* out,
                              float* partial) {
  int64_t n = args.classes, r = blockIdx.x;
  const T* z = static_cast<const T*>(logits) + r * n;
  bool left_out = math::dist_weight(args, r) == 0.0f;
  float inverse = 1.0f / args.temperature, sum;
  float most = greatest(shared, n, [&](int64_t i) { return math::widen(z[i]); });
  sum_row<1>(shared, n, partial, &sum, [&](int64_t i, float* terms) {
    terms[0] = math::softened(math::widen(z[i]), most, inverse);
    out[i] = terms[0];
  });
  float share = 1.0f / sum, same = 1.0f / static_cast<float>(n);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) out[i] = left_out ? same : out[i] * share;
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kMostRowWarps* kWarp) rows_kernel(DistLoss args) {
  BITPARE_SHARED(Shared, shared);
  DistWorkspace workspace = layout::dist_workspace(args.scratch, args.rows, args.classes);
  int64_t n = args.classes, r = blockIdx.x;
  float *q = workspace.student + r * n, *p = workspace.teacher + r * n;
  float *partial = workspace.partial + r * layout::row_floats(n), sums[math::kUnitTerms];
  soften<T>(shared, args, args.student, q, partial);
  soften<T>(shared, args, args.teacher, p, partial);
  float mean = 1.0f / static_cast<float>(n);
  sum_row<math::kUnitTerms>(shared, n, partial, sums, [&](int64_t i, float* terms) {
    math::moments(q[i], p[i], mean, mean, 1.0f, terms);
  });
  if (threadIdx.x != 0) return;
  Correlation<float> c = math::correlation_of(mean, mean, sums);
  __builtin_memcpy(workspace.row + r * math::kCorrelationNumbers, &c, sizeof c);
  workspace.row_losses[r] = math::dist_weight(args, r) * (1.0f - c.value);
}

// Sums down a column, in the order of math/reduce.h: f(row, terms).
template <int kTerms, class F>
__device__ inline void sum_column(const DistLoss& args, const DistWorkspace& workspace,
                                  int64_t column, float* sums, F f) {
  int64_t pieces = layout::pieces_of_rows(args.rows), n = args.classes;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    float lanes[kTerms];
    for (int t = 0; t < kTerms; ++t) lanes[t] = 0.0f;
    int64_t end = (piece + 1) * kSumRows < args.rows ? (piece + 1) * kSumRows : args.rows;
    for (int64_t r = piece * kSumRows; r < end; ++r) {
      float terms[kTerms];
      f(r, terms);
      for (int t = 0; t < kTerms; ++t) lanes[t] += terms[t];
    }
    for (int t = 0; t < kTerms; ++t)
      workspace.partial[(t * pieces + piece) * n + column] = lanes[t];
  }
  for (int t = 0; t < kTerms; ++t) {
    sums[t] =
        math::fold_pairs<math::Sum>(t, workspace.partial + t * pieces * n + column, pieces, n);
  }
}

// A thread takes a column.
__global__ void __launch_bounds__(kThreads) columns_kernel(DistLoss args) {
  DistWorkspace workspace = layout::dist_workspace(args.scratch, args.rows, args.classes);
  int64_t n = args.classes;
  int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= n) return;
  const float *q = workspace.student + column, *p = workspace.teacher + column;
  float sums[math::kUnitTerms], share = math::per_weight(workspace);
  sum_column<math::kMeanTerms>(args, workspace, column, sums, [&](int64_t r, float* terms) {
    terms[0] = q[r * n] * math::dist_weight(args, r);
    terms[1] = p[r * n] * math::dist_weight(args, r);
  });
  float student_mean = sums[0] * share, teacher_mean = sums[1] * share;
  sum_column<math::kUnitTerms>(args, workspace, column, sums, [&](int64_t r, float* terms) {
    math::moments(q[r * n], p[r * n], student_mean, teacher_mean, math::dist_weight(args, r),
                  terms);
  });
  Correlation<float> c = math::correlation_of(student_mean, teacher_mean, sums);
  float numbers[math::kCorrelationNumbers];
  __builtin_memcpy(numbers, &c, sizeof c);
  for (int k = 0; k < math::kCorrelationNumbers; ++k) workspace.column[k * n + column] = numbers[k];
  workspace.column_losses[column] = 1.0f - c.value;
}

template <class T>
__global__ void __launch_bounds__(kMostRowWarps* kWarp) gradient_kernel(DistLoss args) {
  BITPARE_SHARED(Shared, shared);
  DistWorkspace workspace = layout::dist_workspace(args.scratch, args.rows, args.classes);
  int64_t n = args.classes, r = blockIdx.x;
  float *q = workspace.student + r * n, *p = workspace.teacher + r * n;
  float *partial = workspace.partial + r * layout::row_floats(n), product;
  Correlation<float> of_row;
  __builtin_memcpy(&of_row, workspace.row + r * math::kCorrelationNumbers, sizeof of_row);
  math::DistSlopes slopes = math::dist_slopes(args, workspace, r);
  sum_row<1>(shared, n, partial, &product, [&](int64_t i, float* terms) {
    auto number = [&](int k) { return workspace.column[k * n + i]; };
    Correlation<float> of_column = {number(0), number(1), number(2), number(3), number(4)};
    float student = q[i], teacher = p[i];
    float g = slopes.row * math::correlation_slope(student, teacher, of_row) +
              slopes.column * math::correlation_slope(student, teacher, of_column);
    p[i] = g;
    terms[0] = student * g;
  });
  T* gradient = static_cast<T*>(args.gradient) + r * n;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    math::narrow(slopes.logit * q[i] * (p[i] - product), gradient + i);
  }
}

__global__ void __launch_bounds__(kMostRowWarps* kWarp) weights_kernel(DistLoss args) {
  BITPARE_SHARED(Shared, shared);
  DistWorkspace workspace = layout::dist_workspace(args.scratch, args.rows, args.classes);
  float sum;
  sum_row<1>(shared, args.rows, workspace.partial, &sum,
             [&](int64_t r, float* terms) { terms[0] = math::dist_weight(args, r); });
  if (threadIdx.x == 0) workspace.weights[0] = sum;
}

__global__ void __launch_bounds__(kMostRowWarps* kWarp) total_kernel(DistLoss args) {
  BITPARE_SHARED(Shared, shared);
  DistWorkspace workspace = layout::dist_workspace(args.scratch, args.rows, args.classes);
  float rows = sum_of(shared, workspace.row_losses, args.rows, workspace.partial);
  float columns = sum_of(shared, workspace.column_losses, args.classes, workspace.partial);
  if (threadIdx.x == 0) args.loss[0] = math::dist_total(args, workspace, rows, columns);
}

}  // namespace

void dist_loss(const DistLoss& args, const OnCuda& cuda) {
  unsigned of_row = threads_for_row(args.classes), most = kMostRowWarps * kWarp;
  launch(weights_kernel, 1, most, cuda.stream, args);
  with_type(args.dtype, [&]<class T>(T*) {
    launch(rows_kernel<T>, args.rows, of_row, cuda.stream, args);
    launch(columns_kernel, blocks_for(args.classes, kThreads), kThreads, cuda.stream, args);
    launch(total_kernel, 1, most, cuda.stream, args);
    if (args.gradient) launch(gradient_kernel<T>, args.rows, of_row, cuda.stream, args);
  });
}

}  // namespace bitpare
