#include "kernels/cuda/rows.h"
#include "kernels/distill_loss.h"

namespace bitpare {
namespace {

// A row of logits of any type.
struct Logits {
  const void* all;
  DType type;
  int64_t first;

  __device__ float at(int64_t i) const {
    if (type == DType::float32) return static_cast<const float*>(all)[first + i];
    if (type == DType::float16) return math::widen(static_cast<const Half*>(all)[first + i]);
    return math::widen(static_cast<const BFloat16*>(all)[first + i]);
  }
};

using Shared = SharedRow<kDistillTerms>;

// Each block takes one row. Exponentials are recomputed where they are needed: the logits are in
// the cache.
template <Hard kHard, Soft kSoft>
struct Row {
  const DistillLoss& args;
  Shared& shared;
  int64_t r;
  Logits student, teacher;
  const float* labels;
  const int64_t* indices;
  float* partial;
  uint8_t* given;  // of each class, with kSoft = top
  int64_t target;
  DistillSums sums;

  __device__ bool left_out(int64_t i) const {
    if constexpr (kSoft == Soft::decoupled) return i == target;
    if constexpr (kSoft == Soft::top) return given[i] != 0;
    return false;
  }
  __device__ float soft_student(int64_t i) const {
    return left_out(i) ? -__builtin_inff() : student.at(i);
  }
  __device__ float soft_teacher(int64_t i) const {
    if constexpr (!math::reads_teacher(kSoft)) return 0.0f;
    return left_out(i) ? -__builtin_inff() : teacher.at(i);
  }
  __device__ float label(int64_t i) const {
    return kHard == Hard::probabilities ? labels[i] : 0.0f;
  }

  __device__ math::DistillExponentials<float> exponentials(int64_t i, float* terms) const {
    for (int t = 0; t < kDistillTerms; ++t) terms[t] = 0.0f;
    float z = kHard != Hard::none ? student.at(i) : 0.0f;
    float soft = kSoft != Soft::none ? soft_student(i) : 0.0f;
    return math::distill_terms<kHard, kSoft>(args.rule, sums, z, label(i), soft, soft_teacher(i),
                                             terms);
  }

  __device__ void mark_given() const {
    for (int64_t i = threadIdx.x; i < args.classes; i += blockDim.x) given[i] = 0;
    __syncthreads();
    for (int64_t j = threadIdx.x; j < args.top; j += blockDim.x) {
      if (math::is_class(args, indices[j])) given[indices[j]] = 1;
    }
    __syncthreads();
  }

  __device__ void sum_up() {
    int64_t n = args.classes;
    sums = {};
    if (kHard != Hard::none || kSoft == Soft::top) {
      sums.hard_max = greatest(shared, n, [&](int64_t i) { return student.at(i); });
    }
    if constexpr (kSoft != Soft::none) {
      sums.student_max = greatest(shared, n, [&](int64_t i) { return soft_student(i); });
    }
    if (kSoft == Soft::top && sums.student_max == -__builtin_inff()) sums.student_max = 0.0f;
    if constexpr (math::reads_teacher(kSoft)) {
      sums.teacher_max = greatest(shared, n, [&](int64_t i) { return soft_teacher(i); });
    }
    float totals[kDistillTerms];
    sum_row<kDistillTerms>(shared, n, partial, totals,
                           [&](int64_t i, float* terms) { exponentials(i, terms); });
    for (int t = 0; t < kDistillTerms; ++t) sums.at[t] = totals[t];
  }

  __device__ float middle(int64_t i, float* terms) const {
    float unused[kDistillTerms];
    auto e = exponentials(i, unused);
    return math::middle_terms(sums, e.student, e.teacher, terms);
  }

  __device__ float gradient(int64_t i, const DistillSlopes& slopes, float* divergence) const {
    float unused[kDistillTerms], pair[2];
    auto e = exponentials(i, unused);
    float log_q = 0.0f;
    if constexpr (kSoft == Soft::jensen_shannon) {
      log_q = math::middle_terms(sums, e.student, e.teacher, pair);
    }
    return math::distill_gradient<kHard, kSoft>(slopes, e, label(i), log_q, divergence);
  }

  // -- top

  __device__ float distance(int64_t j) const {
    return math::top_distance(args.rule, student.at(indices[j]), sums.hard_max);
  }
  __device__ math::Bucket bucket(int64_t j, const math::TopSums& top) const {
    return math::top_bucket(args.rule, top, distance(j), teacher.at(j), args.logsumexp[r]);
  }

  // Returns the sum of value(j) over the given classes. Each warp computes it, in lanes.
  template <class F>
  __device__ float sum_given(F value) const {
    float lane = 0.0f;
    for (int64_t j = threadIdx.x % kWarp; j < args.top; j += kWarp) lane += value(j);
    return sum_of_warp(lane);
  }

  __device__ math::TopSums add_top(float scale, float* divergence, DistillResult* result) const {
    float given_sum = sum_given([&](int64_t j) { return math::exponential(distance(j)); });
    float share =
        sum_given([&](int64_t j) { return math::exponential(bucket(j, {}).log_teacher); });
    math::TopSums all = math::top_sums(args.rule, sums, given_sum, share);
    float others[2];
    math::bucket_terms(args.rule.divergence, all.others, others);
    for (int t = 0; t < 2; ++t) {
      divergence[t] = others[t] + sum_given([&](int64_t j) {
                        float terms[2];
                        math::bucket_terms(args.rule.divergence, bucket(j, all), terms);
                        return terms[t];
                      });
    }
    math::add_top(args.rule, sums, all, divergence, scale, result);
    return all;
  }

  __device__ float top_gradient(int64_t i, const math::TopSums& top, const float* divergence,
                                float scale) const {
    float sum = 0.0f;
    for (int64_t j = 0; j < args.top; ++j) {
      if (indices[j] == i) sum += math::top_gradient(args.rule, bucket(j, top), divergence, scale);
    }
    return sum;
  }
};

__device__ inline void store_gradient(const DistillLoss& args, int64_t at, float value) {
  if (args.student_type == DType::float32) {
    static_cast<float*>(args.gradient)[at] = value;
  } else if (args.student_type == DType::float16) {
    math::narrow(value, static_cast<Half*>(args.gradient) + at);
  } else {
    math::narrow(value, static_cast<BFloat16*>(args.gradient) + at);
  }
}

template <Hard kHard, Soft kSoft>
__global__ void __launch_bounds__(kMostRowWarps* kWarp) rows_kernel(DistillLoss args) {
  BITPARE_SHARED(Shared, shared);
  int64_t r = blockIdx.x, n = args.classes;
  float weight = math::row_weight(args.target, args.weight, args.ignored, r);
  if (weight == 0.0f || (kSoft == Soft::decoupled && n == 1)) {
    if (threadIdx.x == 0) args.loss[r] = 0.0f;
    for (int64_t i = threadIdx.x; args.gradient && i < n; i += blockDim.x) {
      store_gradient(args, r * n + i, 0.0f);
    }
    return;
  }
  float scale = math::scale_of_row(args, r);
  int64_t target = args.target ? args.target[r] : 0;
  bool valid = !args.target || math::is_class(args, target);
  if (!valid) {
    target = 0;
    scale = __builtin_nanf("");
  }
  float* scratch = args.scratch + r * layout::distill_floats_on_cuda(n);
  auto workspace = layout::distill_workspace_on_cuda(scratch, n);
  float* partial = workspace.partial;
  int64_t width = kSoft == Soft::top ? args.top : n;
  Row<kHard, kSoft> row = {args,
                           shared,
                           r,
                           {args.student, args.student_type, r * n},
                           {args.teacher, args.teacher_type, r * width},
                           args.labels ? args.labels + r * n : nullptr,
                           args.indices ? args.indices + r * args.top : nullptr,
                           partial,
                           workspace.given,
                           target,
                           {}};
  if constexpr (kSoft == Soft::top) row.mark_given();
  row.sum_up();
  DistillResult result;
  float aligned = row.student.at(target) - row.sums.hard_max;
  math::add_hard(args.rule, row.sums, aligned, scale, &result);
  float middle[2] = {0.0f, 0.0f}, divergence[2];
  math::TopSums top = {};
  if constexpr (kSoft == Soft::top) {
    top = row.add_top(scale, divergence, &result);
  } else if constexpr (kSoft != Soft::none) {
    if constexpr (kSoft == Soft::jensen_shannon) {
      sum_row<2>(shared, n, partial, middle,
                 [&](int64_t i, float* terms) { row.middle(i, terms); });
    }
    DistillTarget aimed = {};
    float inverse = 1.0f / args.rule.temperature;
    aimed.student = (row.student.at(target) - row.sums.student_max) * inverse;
    aimed.teacher = (row.teacher.at(target) - row.sums.teacher_max) * inverse;
    math::add_soft(args.rule, row.sums, aimed, middle, scale, &result);
  }
  float terms;
  sum_row<1>(shared, n, partial, &terms, [&](int64_t i, float* term) {
    term[0] = 0.0f;
    float value = row.gradient(i, result.slopes, term);
    if (!args.gradient) return;
    if (args.target && i == target) value = value - result.slopes.hit;
    if constexpr (kSoft == Soft::top) {
      if (row.given[i]) value += row.top_gradient(i, top, divergence, scale);
    }
    store_gradient(args, r * n + i, value);
  });
  if (threadIdx.x != 0) return;
  if (result.divergence_weight != 0.0f) result.loss += result.divergence_weight * terms;
  args.loss[r] = weight * (valid ? result.loss : scale);
}

// Runs as one block: the factor before the rows, their sum after them.
__global__ void __launch_bounds__(kMostRowWarps* kWarp) factor_kernel(DistillLoss args) {
  BITPARE_SHARED(Shared, shared);
  float weights;
  sum_row<1>(shared, args.rows, args.sums, &weights, [&](int64_t r, float* terms) {
    terms[0] = math::row_weight(args.target, args.weight, args.ignored, r);
  });
  if (threadIdx.x == 0) args.factor[0] = math::factor_of(weights, args.mean);
}

__global__ void __launch_bounds__(kMostRowWarps* kWarp) total_kernel(DistillLoss args) {
  BITPARE_SHARED(Shared, shared);
  float loss = sum_of(shared, args.loss, args.rows, args.sums);
  if (threadIdx.x == 0) args.total[0] = loss * args.factor[0];
}

}  // namespace

void distill_loss(const DistillLoss& args, const OnCuda& cuda) {
  unsigned all = threads_for_row(args.rows);
  launch(factor_kernel, 1, all, cuda.stream, args);
  if (args.rows > 0) {
    with_losses(args.rule, [&]<Hard kHard, Soft kSoft>() {
      launch(rows_kernel<kHard, kSoft>, args.rows, threads_for_row(args.classes), cuda.stream,
             args);
    });
  }
  launch(total_kernel, 1, all, cuda.stream, args);
}

}  // namespace bitpare
