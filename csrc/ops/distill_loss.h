// The arguments of `_distill_loss`, which both losses call below autograd: their checks, and what a
// kernel reads of them.
#pragma once
#include <cmath>

#include "kernels/distill_loss.h"
#include "ops/stored_gradient.h"

namespace bitpare::ops::distill {

enum class Reduction : int64_t { none, mean, sum };

// The numbers of `_distill_loss`. soft: a Soft; reduction: a Reduction.
struct Settings {
  int64_t soft;
  double temperature, hard_weight, soft_weight, smoothing, target_weight, others_weight;
  int64_t ignore_index, reduction;

  auto fields() const {
    return std::tie(soft, temperature, hard_weight, soft_weight, smoothing, target_weight,
                    others_weight, ignore_index, reduction);
  }
};

// The arguments of `_distill_loss`, which both losses call. With indices and logsumexp the teacher
// gave its largest logits only.
struct Options {
  const Tensor& student;
  const Tensor& teacher;
  const OptionalTensor& target;
  const OptionalTensor& row_weight;
  const OptionalTensor& indices;
  const OptionalTensor& logsumexp;
  const OptionalTensor& incoming;
  Settings settings;
  bool with_gradient;

  auto fields() const {
    return std::tuple_cat(
        std::tie(student, teacher, target, row_weight, indices, logsumexp, incoming),
        settings.fields(), std::tie(with_gradient));
  }
};

inline bool is_index(const OptionalTensor& target) {
  return target && target->scalar_type() == at::kLong;
}

inline DistillRule rule_of(const Options& o) {
  const Settings& s = o.settings;
  DistillRule rule;
  auto divergence = static_cast<Soft>(s.soft);
  if (o.target && s.hard_weight != 0.0) {
    rule.hard = is_index(o.target) ? Hard::index : Hard::probabilities;
  }
  if (s.soft_weight != 0.0) {
    rule.soft = o.indices ? Soft::top : divergence;
    rule.divergence = divergence;
  }
  rule.hard_weight = static_cast<float>(s.hard_weight);
  rule.soft_weight = static_cast<float>(s.soft_weight);
  rule.temperature = static_cast<float>(s.temperature);
  rule.smoothing = static_cast<float>(s.smoothing);
  rule.smoothed = static_cast<float>(s.smoothing / static_cast<double>(o.student.size(-1)));
  rule.target_weight = static_cast<float>(s.target_weight);
  rule.others_weight = static_cast<float>(s.others_weight);
  return rule;
}

inline void check_targets(const Tensor& target, int64_t classes, int64_t ignored) {
  const int64_t* t = target.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < target.numel(); ++i) {
    TORCH_CHECK_INDEX(t[i] == ignored || (t[i] >= 0 && t[i] < classes),
                      "distill_loss: target must be a class from 0 to ", classes - 1,
                      " or ignore_index=", ignored, ", got ", t[i], " in row ", i);
  }
}

inline void check_indices(const Tensor& indices, int64_t classes) {
  const int64_t* t = indices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < indices.numel(); ++i) {
    TORCH_CHECK_INDEX(t[i] >= 0 && t[i] < classes,
                      "distill_loss: teacher_indices must be classes from 0 to ", classes - 1,
                      ", got ", t[i]);
  }
}

inline void check_logits(const char* op, const char* name, const Tensor& logits) {
  TORCH_CHECK(logits.is_floating_point() && logits.scalar_type() != at::kDouble, op, ": ", name,
              " must be float32, float16 or bfloat16, got ", logits.scalar_type());
  TORCH_CHECK(logits.dim() >= 1, op, ": ", name, " must have classes along the last dimension");
}

inline void check_same(const char* op, const char* name, const Tensor& x,
                       c10::SymIntArrayRef expected) {
  TORCH_CHECK(x.sym_sizes().equals(expected), op, ": ", name, " must have shape ", expected,
              ", got ", x.sym_sizes());
}

inline void check_teacher(const char* op, const Options& o) {
  auto shape = o.student.sym_sizes(), rows = shape.slice(0, shape.size() - 1);
  auto given = o.teacher.sym_sizes();
  TORCH_CHECK(o.indices.has_value() == o.logsumexp.has_value(), op,
              ": teacher_indices and teacher_logsumexp must be given together");
  if (!o.indices) {
    TORCH_CHECK(given.equals(shape), op,
                ": student_logits and teacher_logits must have the same rows and classes, got ",
                shape, " and ", given);
    return;
  }
  TORCH_CHECK(at::isIntegralType(o.indices->scalar_type(), false), op,
              ": teacher_indices must be integers, got ", o.indices->scalar_type());
  TORCH_CHECK(at::isFloatingType(o.logsumexp->scalar_type()), op,
              ": teacher_logsumexp must be floating point, got ", o.logsumexp->scalar_type());
  check_same(op, "teacher_indices", *o.indices, given);
  check_same(op, "teacher_logsumexp", *o.logsumexp, rows);
  TORCH_CHECK(given.slice(0, given.size() - 1).equals(rows) &&
                  o.teacher.sym_size(-1) <= o.student.sym_size(-1),
              op, ": with teacher_indices teacher_logits must be [..., k] values for the rows of ",
              "student_logits ", shape, ", got ", given);
}

inline void check_labels(const char* op, const Options& o) {
  auto shape = o.student.sym_sizes(), rows = shape.slice(0, shape.size() - 1);
  if (o.target && is_index(o.target)) {
    check_same(op, "target", *o.target, rows);
  } else if (o.target) {
    TORCH_CHECK(o.target->is_floating_point(), op, ": target must be classes (int64) or ",
                "probabilities (floating point), got ", o.target->scalar_type());
    check_same(op, "target", *o.target, shape);
  }
  if (o.row_weight) {
    TORCH_CHECK(!o.row_weight->is_complex(), op, ": row_weight must be real, got ",
                o.row_weight->scalar_type());
    check_same(op, "row_weight", *o.row_weight, rows);
  }
}

inline void check(const Options& o) {
  const Settings& s = o.settings;
  check_choice("distill_loss", "soft", s.soft, Soft::decoupled);
  check_choice("distill_loss", "reduction", s.reduction, Reduction::sum);
  bool decoupled = static_cast<Soft>(s.soft) == Soft::decoupled;
  const char* op = decoupled ? "dkd_loss" : "distill_loss";
  check_logits(op, "student_logits", o.student);
  check_logits(op, "teacher_logits", o.teacher);
  TORCH_CHECK(o.student.sym_size(-1) > 0, op, ": student_logits must have at least one class");
  check_teacher(op, o);
  check_labels(op, o);
  TORCH_CHECK(std::isfinite(s.temperature) && s.temperature > 0, op,
              ": temperature must be above 0, got ", s.temperature);
  TORCH_CHECK(!decoupled || (is_index(o.target) && !o.indices), op,
              ": target must be classes (int64)");
  TORCH_CHECK(!o.incoming || !o.incoming->is_complex(), op, ": incoming must be real");
  TORCH_CHECK(!o.incoming || o.incoming->sym_numel() == 1 ||
                  o.incoming->sym_numel() * o.student.sym_size(-1) == o.student.sym_numel(),
              op, ": incoming must be one number, or one for each row");
}

// The tensors that a kernel reads as arrays, kept alive.
struct Inputs {
  Tensor student, teacher, target, labels, weight, indices, logsumexp, incoming;
};

inline Tensor floats(const Tensor& x) { return x.to(at::kFloat).contiguous(); }

// Fills what a kernel reads. With see_values, classes are checked.
inline Inputs add_inputs(const Options& o, bool see_values, DistillLoss* args) {
  Inputs in;
  in.student = o.student.contiguous();
  in.teacher = o.teacher.contiguous();
  args->rule = rule_of(o);
  args->student = in.student.const_data_ptr();
  args->teacher = in.teacher.const_data_ptr();
  args->student_type = dtype_of("distill_loss", o.student);
  args->teacher_type = dtype_of("distill_loss", o.teacher);
  args->classes = o.student.size(-1);
  args->rows = o.student.numel() / std::max<int64_t>(args->classes, 1);
  args->ignored = o.settings.ignore_index;
  if (o.target && is_index(o.target)) {
    in.target = o.target->contiguous();
    if (see_values) check_targets(in.target, args->classes, args->ignored);
    args->target = in.target.const_data_ptr<int64_t>();
  } else if (o.target && args->rule.hard == Hard::probabilities) {
    in.labels = floats(*o.target);
    args->labels = in.labels.const_data_ptr<float>();
  }
  if (o.row_weight) {
    in.weight = floats(*o.row_weight);
    args->weight = in.weight.const_data_ptr<float>();
  }
  if (o.indices && o.logsumexp) {
    in.indices = o.indices->to(at::kLong).contiguous();
    in.logsumexp = floats(*o.logsumexp);
    if (see_values) check_indices(in.indices, args->classes);
    args->indices = in.indices.const_data_ptr<int64_t>();
    args->logsumexp = in.logsumexp.const_data_ptr<float>();
    args->top = in.indices.size(-1);
  }
  if (o.incoming) {
    in.incoming = floats(*o.incoming);
    args->incoming = in.incoming.const_data_ptr<float>();
    args->incoming_rows = in.incoming.numel();
  }
  return in;
}

}  // namespace bitpare::ops::distill
