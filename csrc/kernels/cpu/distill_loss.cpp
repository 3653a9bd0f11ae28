#include "kernels/distill_loss.h"

#include "kernels/cpu/rows.h"

namespace bitpare {
namespace {

// One row: its logits as floats, in place or copied to the workspace, and the row's workspace. In
// soft_student and teacher the classes that are left out are -infinity.
struct Row {
  const float *student, *soft_student, *teacher, *labels;
  float *hard_exp, *student_exp, *teacher_exp, *distance, *partial;
};

BITPARE_INLINE constexpr bool reads_distance(Soft soft) {
  return math::reads_teacher(soft) && soft != Soft::jensen_shannon;
}

template <Hard kHard, Soft kSoft>
BITPARE_INLINE math::DistillExponentials<Vec> read_exponentials(const DistillRule& rule,
                                                                const Row& row, int64_t at,
                                                                int64_t count) {
  math::DistillExponentials<Vec> e = {};
  if constexpr (kSoft != Soft::none) e.student = read(row.student_exp, at, count);
  if constexpr (kHard != Hard::none) {
    e.hard = math::hard_is_a_power<kSoft>(rule) ? math::hard_power(rule, e.student)
                                                : read(row.hard_exp, at, count);
  }
  if constexpr (math::reads_teacher(kSoft)) e.teacher = read(row.teacher_exp, at, count);
  if constexpr (reads_distance(kSoft)) e.distance = read(row.distance, at, count);
  return e;
}

// Computes the sums over a row, and leaves its exponentials in the workspace.
template <Hard kHard, Soft kSoft>
DistillSums sum_up(const DistillLoss& args, const Row& row) {
  int64_t n = args.classes;
  DistillSums sums = {};
  if (kHard != Hard::none || kSoft == Soft::top) sums.hard_max = greatest(row.student, n);
  if (kSoft != Soft::none) sums.student_max = greatest(row.soft_student, n);
  if (kSoft == Soft::top && sums.student_max == -__builtin_inff()) sums.student_max = 0.0f;
  if (math::reads_teacher(kSoft)) sums.teacher_max = greatest(row.teacher, n);
  auto formula = [&](int64_t at, int64_t count, Vec* terms) [[gnu::always_inline]] {
    Vec z = {}, label = {}, student = {}, teacher = {};
    if constexpr (kHard != Hard::none) z = read(row.student, at, count);
    if constexpr (kHard == Hard::probabilities) label = read(row.labels, at, count);
    if constexpr (kSoft != Soft::none) student = read(row.soft_student, at, count);
    if constexpr (math::reads_teacher(kSoft)) teacher = read(row.teacher, at, count);
    auto e = math::distill_terms<kHard, kSoft>(args.rule, sums, z, label, student, teacher, terms);
    if (kHard != Hard::none && !math::hard_is_a_power<kSoft>(args.rule)) {
      write(row.hard_exp, at, count, e.hard);
    }
    if constexpr (kSoft != Soft::none) write(row.student_exp, at, count, e.student);
    if constexpr (math::reads_teacher(kSoft)) write(row.teacher_exp, at, count, e.teacher);
    if constexpr (reads_distance(kSoft)) write(row.distance, at, count, e.distance);
  };
  sum_row<kDistillTerms, terms_of(kHard, kSoft)>(n, row.partial, sums.at, formula);
  return sums;
}

// The logarithms log(q / m) overwrite the teacher's exponentials.
void sum_up_middle(const DistillLoss& args, const Row& row, const DistillSums& sums,
                   float* middle) {
  sum_row<2>(args.classes, row.partial, middle, [&](int64_t at, int64_t count, Vec* terms) {
    Vec log_q = math::middle_terms(sums, read(row.student_exp, at, count),
                                   read(row.teacher_exp, at, count), terms);
    write(row.teacher_exp, at, count, log_q);
  });
}

// Writes the gradient, unless `out` is null, and returns the sum of the divergence's terms.
template <Hard kHard, Soft kSoft>
float write_gradient(const DistillLoss& args, const Row& row, const DistillSlopes& slopes,
                     float* out) {
  auto formula = [&](int64_t at, int64_t count, Vec* divergence) [[gnu::always_inline]] {
    auto e = read_exponentials<kHard, kSoft>(args.rule, row, at, count);
    Vec label = {};
    if constexpr (kHard == Hard::probabilities) label = read(row.labels, at, count);
    Vec y = math::distill_gradient<kHard, kSoft>(slopes, e, label, e.teacher, divergence);
    if (out) write(out, at, count, y);
  };
  float divergence = 0.0f;
  Vec none;
  if constexpr (reads_distance(kSoft)) {
    sum_row<1>(args.classes, row.partial, &divergence, formula);
  } else if (out) {
    for_each_vector(args.classes, [&](int64_t at, int64_t count) { formula(at, count, &none); });
  }
  return divergence;
}

// -- top

float lanes_of(int64_t count, float* lanes, auto value) {
  for (int64_t l = 0; l < kSumLanes; ++l) lanes[l] = 0.0f;
  for (int64_t j = 0; j < count; ++j) lanes[j % kSumLanes] += value(j);
  return math::fold_lanes<math::Sum>(0, lanes);
}

struct Top {
  const DistillRule& rule;
  const float *student, *values;
  const int64_t* indices;
  int64_t count;
  float logsumexp, hard_max;

  float distance(int64_t j) const {
    return math::top_distance(rule, student[indices[j]], hard_max);
  }
  math::Bucket bucket(int64_t j, const math::TopSums& top) const {
    return math::top_bucket(rule, top, distance(j), values[j], logsumexp);
  }
};

// Sums over the given classes and over the others as one, and adds to the result's loss and slopes.
math::TopSums add_top(const Top& top, const DistillSums& sums, float scale, float* divergence,
                      DistillResult* result) {
  const DistillRule& rule = top.rule;
  int64_t k = top.count;
  float lanes[kSumLanes];
  float given = lanes_of(k, lanes, [&](int64_t j) { return math::exponential(top.distance(j)); });
  float teacher = lanes_of(
      k, lanes, [&](int64_t j) { return math::exponential(top.bucket(j, {}).log_teacher); });
  math::TopSums all = math::top_sums(rule, sums, given, teacher);
  float others[2], terms[2];
  math::bucket_terms(rule.divergence, all.others, others);
  for (int t = 0; t < 2; ++t) {
    divergence[t] = others[t] + lanes_of(k, lanes, [&](int64_t j) {
                      math::bucket_terms(rule.divergence, top.bucket(j, all), terms);
                      return terms[t];
                    });
  }
  math::add_top(rule, sums, all, divergence, scale, result);
  return all;
}

// -- rows

// Returns logits as floats: in place if they are float32 and no copy is wanted, else a copy.
const float* floats_of(const void* all, DType type, int64_t row, int64_t n, float* copy,
                       bool always) {
  if (type == DType::float32 && !always) return static_cast<const float*>(all) + row * n;
  with_type(type, [&]<class T>(T*) {
    const T* from = static_cast<const T*>(all) + row * n;
    for_each_vector(
        n, [&](int64_t at, int64_t count) { write(copy, at, count, read(from, at, count)); });
  });
  return copy;
}

template <Hard kHard, Soft kSoft>
struct Rows {
  const DistillLoss& args;
  layout::DistillWorkspace workspace;

  void run(int64_t r) const {
    int64_t n = args.classes;
    float weight = math::row_weight(args.target, args.weight, args.ignored, r);
    bool in_place = args.student_type == DType::float32;
    float* gradient = nullptr;
    if (args.gradient) {
      gradient = in_place ? static_cast<float*>(args.gradient) + r * n : workspace.hard_exp;
    }
    if (weight == 0.0f || (kSoft == Soft::decoupled && n == 1)) {
      args.loss[r] = 0.0f;
      if (gradient)
        for_each_vector(n, [&](int64_t at, int64_t c) { write(gradient, at, c, Vec{}); });
    } else {
      args.loss[r] = weight * loss(r, math::scale_of_row(args, r), gradient);
    }
    if (gradient && !in_place) {
      with_type(args.student_type, [&]<class T>(T*) {
        T* to = static_cast<T*>(args.gradient) + r * n;
        for_each_vector(
            n, [&](int64_t at, int64_t count) { write(to, at, count, read(gradient, at, count)); });
      });
    }
  }

 private:
  // in_place: the gradient's row if it is float32, else null; until then it holds exponentials.
  Row row_of(int64_t r, float* in_place) const {
    int64_t n = args.classes;
    Row row = {};
    row.student = floats_of(args.student, args.student_type, r, n, workspace.student, false);
    row.soft_student = row.student;
    if (kHard == Hard::probabilities) row.labels = args.labels + r * n;
    if (kSoft == Soft::decoupled || kSoft == Soft::top) {
      row.soft_student =
          floats_of(args.student, args.student_type, r, n, workspace.soft_student, true);
    }
    if (kSoft == Soft::top) {
      row.teacher =
          floats_of(args.teacher, args.teacher_type, r, args.top, workspace.teacher, false);
    } else if (kSoft != Soft::none) {
      bool copied = kSoft == Soft::decoupled;
      row.teacher = floats_of(args.teacher, args.teacher_type, r, n, workspace.teacher, copied);
    }
    row.hard_exp = workspace.hard_exp;
    row.student_exp = in_place ? in_place : workspace.student_exp;
    row.teacher_exp = workspace.teacher_exp;
    row.distance = workspace.distance;
    row.partial = workspace.partial;
    return row;
  }

  float loss(int64_t r, float scale, float* gradient) const {
    Row row = row_of(r, args.student_type == DType::float32 ? gradient : nullptr);
    int64_t target = args.target ? args.target[r] : 0;
    if (args.target && !math::is_class(args, target)) {
      target = 0;
      scale = __builtin_nanf("");
    }
    const int64_t* indices = kSoft == Soft::top ? args.indices + r * args.top : nullptr;
    DistillTarget aimed = {};
    if constexpr (kSoft == Soft::decoupled) {
      aimed.student = row.student[target];
      aimed.teacher = row.teacher[target];
      workspace.soft_student[target] = workspace.teacher[target] = -__builtin_inff();
    }
    if constexpr (kSoft == Soft::top) {
      for (int64_t j = 0; j < args.top; ++j) workspace.soft_student[indices[j]] = -__builtin_inff();
    }
    DistillSums sums = sum_up<kHard, kSoft>(args, row);
    DistillResult result;
    aimed.aligned = row.student[target] - sums.hard_max;
    math::add_hard(args.rule, sums, aimed.aligned, scale, &result);
    float middle[2] = {}, divergence[2];
    Top top = {args.rule, row.student, row.teacher, indices, args.top, 0.0f, sums.hard_max};
    math::TopSums top_sums = {};
    if constexpr (kSoft == Soft::top) {
      top.logsumexp = args.logsumexp[r];
      top_sums = add_top(top, sums, scale, divergence, &result);
    } else if constexpr (kSoft != Soft::none) {
      if constexpr (kSoft == Soft::jensen_shannon) sum_up_middle(args, row, sums, middle);
      float inverse = 1.0f / args.rule.temperature;
      aimed.student = (aimed.student - sums.student_max) * inverse;
      aimed.teacher = (aimed.teacher - sums.teacher_max) * inverse;
      math::add_soft(args.rule, sums, aimed, middle, scale, &result);
    }
    float terms = write_gradient<kHard, kSoft>(args, row, result.slopes, gradient);
    if (result.divergence_weight != 0.0f) result.loss += result.divergence_weight * terms;
    if (gradient) {
      if (args.target) gradient[target] = gradient[target] - result.slopes.hit;
      if constexpr (kSoft == Soft::top) {
        for (int64_t j = 0; j < args.top; ++j) {
          gradient[indices[j]] +=
              math::top_gradient(args.rule, top.bucket(j, top_sums), divergence, scale);
        }
      }
    }
    return scale == scale ? result.loss : scale;
  }
};

float sum_of_weights(const DistillLoss& args) {
  float sum;
  sum_row<1>(args.rows, args.sums, &sum, [&](int64_t at, int64_t count, Vec* terms) {
    float weights[kWidth] = {};
    for (int64_t l = 0; l < count; ++l) {
      weights[l] = math::row_weight(args.target, args.weight, args.ignored, at + l);
    }
    terms[0] = load(weights);
  });
  return sum;
}

}  // namespace

// Each core works through whole rows; a row stays in the cache until its gradient is written.
template <>
void distill_loss(const DistillLoss& args, const OnCpu<BITPARE_ISA>& cpu) {
  args.factor[0] = math::factor_of(sum_of_weights(args), args.mean);
  int64_t each = (args.rows + args.workers - 1) / args.workers;
  with_losses(args.rule, [&]<Hard kHard, Soft kSoft>() {
    parallel(cpu.parallel_for, args.workers, 1, [&](int64_t first, int64_t last) {
      for (int64_t worker = first; worker < last; ++worker) {
        float* scratch = args.scratch + worker * layout::distill_floats(args.classes);
        Rows<kHard, kSoft> rows = {args, layout::distill_workspace(scratch, args.classes)};
        int64_t end = at_most((worker + 1) * each, args.rows);
        for (int64_t r = worker * each; r < end; ++r) rows.run(r);
      }
    });
  });
  args.total[0] = sum_of(args.loss, args.rows, args.sums) * args.factor[0];
}

}  // namespace bitpare
