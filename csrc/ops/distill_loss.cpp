#include "kernels/distill_loss.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "ops/stored_gradient.h"

namespace bitpare::ops {
namespace {

// A teacher that gave its largest logits only.
struct TopTeacher {
  OptionalTensor indices, logsumexp;
};

struct Settings {
  int64_t soft;
  double temperature, hard_weight, soft_weight, smoothing, target_weight, others_weight;
  int64_t ignore_index, reduction;
};

enum class Reduction : int64_t { none, mean, sum };

using Result = std::tuple<Tensor, Tensor>;
using Signature = Result(const Tensor& student, const Tensor& teacher, const OptionalTensor& target,
                         const OptionalTensor& row_weight, const OptionalTensor& indices,
                         const OptionalTensor& logsumexp, const OptionalTensor& incoming,
                         int64_t soft, double temperature, double hard_weight, double soft_weight,
                         double smoothing, double target_weight, double others_weight,
                         int64_t ignore_index, int64_t reduction, bool with_gradient);

bool is_index(const OptionalTensor& target) { return target && target->scalar_type() == at::kLong; }

DistillRule rule_of(const Settings& s, const OptionalTensor& target, bool top, int64_t classes) {
  DistillRule rule;
  auto divergence = static_cast<Soft>(s.soft);
  if (target && s.hard_weight != 0.0) {
    rule.hard = is_index(target) ? Hard::index : Hard::probabilities;
  }
  if (s.soft_weight != 0.0) {
    rule.soft = top ? Soft::top : divergence;
    rule.divergence = divergence;
  }
  rule.hard_weight = static_cast<float>(s.hard_weight);
  rule.soft_weight = static_cast<float>(s.soft_weight);
  rule.temperature = static_cast<float>(s.temperature);
  rule.smoothing = static_cast<float>(s.smoothing);
  rule.smoothed = static_cast<float>(s.smoothing / static_cast<double>(classes));
  rule.target_weight = static_cast<float>(s.target_weight);
  rule.others_weight = static_cast<float>(s.others_weight);
  return rule;
}

Tensor floats(const Tensor& x) { return x.to(at::kFloat).contiguous(); }

void check_targets(const Tensor& target, int64_t classes, int64_t ignored) {
  const int64_t* t = target.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < target.numel(); ++i) {
    TORCH_CHECK_INDEX(t[i] == ignored || (t[i] >= 0 && t[i] < classes),
                      "distill_loss: target must be a class from 0 to ", classes - 1,
                      " or ignore_index=", ignored, ", got ", t[i], " in row ", i);
  }
}

void check_indices(const Tensor& indices, int64_t classes) {
  const int64_t* t = indices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < indices.numel(); ++i) {
    TORCH_CHECK_INDEX(t[i] >= 0 && t[i] < classes,
                      "distill_loss: teacher_indices must be classes from 0 to ", classes - 1,
                      ", got ", t[i]);
  }
}

c10::SymDimVector loss_shape(const Tensor& student, int64_t reduction) {
  auto sizes = student.sym_sizes();
  if (static_cast<Reduction>(reduction) != Reduction::none) return {};
  return {sizes.begin(), sizes.end() - 1};
}

// How many rows are worked on at once: each takes scratch.
int64_t workers_for(int64_t rows, int64_t classes) {
  int64_t tasks = rows * classes / (1 << 14);
  return std::max<int64_t>(1, std::min<int64_t>({at::get_num_threads(), rows, tasks}));
}

void check_logits(const char* op, const char* name, const Tensor& logits) {
  TORCH_CHECK(logits.is_floating_point() && logits.scalar_type() != at::kDouble, op, ": ", name,
              " must be float32, float16 or bfloat16, got ", logits.scalar_type());
  TORCH_CHECK(logits.dim() >= 1, op, ": ", name, " must have classes along the last dimension");
}

void check_same(const char* op, const char* name, const Tensor& x, c10::SymIntArrayRef expected) {
  TORCH_CHECK(x.sym_sizes().equals(expected), op, ": ", name, " must have shape ", expected,
              ", got ", x.sym_sizes());
}

void check(const char* op, const Tensor& student, const Tensor& teacher,
           const OptionalTensor& target, const OptionalTensor& row_weight, const TopTeacher& top,
           const Settings& s) {
  check_logits(op, "student_logits", student);
  check_logits(op, "teacher_logits", teacher);
  auto shape = student.sym_sizes(), rows = shape.slice(0, shape.size() - 1);
  TORCH_CHECK(student.sym_size(-1) > 0, op, ": student_logits must have at least one class");
  TORCH_CHECK(top.indices.has_value() == top.logsumexp.has_value(), op,
              ": teacher_indices and teacher_logsumexp go together");
  if (top.indices) {
    TORCH_CHECK(at::isIntegralType(top.indices->scalar_type(), false), op,
                ": teacher_indices must be integers, got ", top.indices->scalar_type());
    TORCH_CHECK(at::isFloatingType(top.logsumexp->scalar_type()), op,
                ": teacher_logsumexp must be floating point, got ", top.logsumexp->scalar_type());
    check_same(op, "teacher_indices", *top.indices, teacher.sym_sizes());
    check_same(op, "teacher_logsumexp", *top.logsumexp, rows);
    auto values = teacher.sym_sizes();
    TORCH_CHECK(values.slice(0, values.size() - 1).equals(rows) &&
                    teacher.sym_size(-1) <= student.sym_size(-1),
                op,
                ": with teacher_indices teacher_logits must be [..., k] values for the rows of ",
                "student_logits ", shape, ", got ", values);
  } else {
    TORCH_CHECK(teacher.sym_sizes().equals(shape), op,
                ": student_logits and teacher_logits must have the same rows and classes, got ",
                shape, " and ", teacher.sym_sizes());
  }
  if (target && is_index(target)) {
    check_same(op, "target", *target, rows);
  } else if (target) {
    TORCH_CHECK(target->is_floating_point(), op, ": target must be classes (int64) or ",
                "probabilities (floating point), got ", target->scalar_type());
    check_same(op, "target", *target, shape);
  }
  if (row_weight) {
    TORCH_CHECK(!row_weight->is_complex(), op, ": row_weight must be real, got ",
                row_weight->scalar_type());
    check_same(op, "row_weight", *row_weight, rows);
  }
  TORCH_CHECK(std::isfinite(s.temperature) && s.temperature > 0, op,
              ": temperature must be above 0, got ", s.temperature);
}

// Checks the arguments of `_distill_loss`, which both losses call.
void check(const Tensor& student, const Tensor& teacher, const OptionalTensor& target,
           const OptionalTensor& row_weight, const TopTeacher& top, const OptionalTensor& incoming,
           const Settings& s) {
  check_choice("distill_loss", "soft", s.soft, Soft::decoupled);
  check_choice("distill_loss", "reduction", s.reduction, Reduction::sum);
  bool decoupled = static_cast<Soft>(s.soft) == Soft::decoupled;
  const char* op = decoupled ? "dkd_loss" : "distill_loss";
  check(op, student, teacher, target, row_weight, top, s);
  TORCH_CHECK(!decoupled || (is_index(target) && !top.indices), op,
              ": target must be classes (int64)");
  TORCH_CHECK(!incoming || !incoming->is_complex(), op, ": incoming must be real");
  TORCH_CHECK(!incoming || incoming->sym_numel() == 1 ||
                  incoming->sym_numel() * student.sym_size(-1) == student.sym_numel(),
              op, ": incoming must be one number, or one for each row");
}

template <class Device>
Result body(const Tensor& student, const Tensor& teacher, const OptionalTensor& target,
            const OptionalTensor& row_weight, const OptionalTensor& indices,
            const OptionalTensor& logsumexp, const OptionalTensor& incoming, int64_t soft,
            double temperature, double hard_weight, double soft_weight, double smoothing,
            double target_weight, double others_weight, int64_t ignore_index, int64_t reduction,
            bool with_gradient) {
  Device::require("distill_loss", student);
  Settings settings = {soft,          temperature,   hard_weight,  soft_weight, smoothing,
                       target_weight, others_weight, ignore_index, reduction};
  check(student, teacher, target, row_weight, {indices, logsumexp}, incoming, settings);
  int64_t classes = student.size(-1), rows = student.numel() / std::max<int64_t>(classes, 1);
  Tensor zs = student.contiguous(), zt = teacher.contiguous(), y, weight, top, sum, dy;
  DistillLoss args = {};
  args.rule = rule_of(settings, target, indices.has_value(), classes);
  if (target && target->scalar_type() == at::kLong) {
    y = target->contiguous();
    if constexpr (Device::kSeesValues) check_targets(y, classes, ignore_index);
    args.target = y.const_data_ptr<int64_t>();
  } else if (target && args.rule.hard == Hard::probabilities) {
    y = floats(*target);
    args.labels = y.const_data_ptr<float>();
  }
  if (row_weight) {
    weight = floats(*row_weight);
    args.weight = weight.const_data_ptr<float>();
  }
  if (indices && logsumexp) {
    top = indices->to(at::kLong).contiguous();
    sum = floats(*logsumexp);
    if constexpr (Device::kSeesValues) check_indices(top, classes);
    args.indices = top.const_data_ptr<int64_t>();
    args.logsumexp = sum.const_data_ptr<float>();
    args.top = top.size(-1);
  }
  if (incoming) {
    dy = floats(*incoming);
    args.incoming = dy.const_data_ptr<float>();
    args.incoming_rows = dy.numel();
  }
  auto options = student.options().dtype(at::kFloat).memory_format(std::nullopt);
  Tensor loss = at::empty({rows}, options), numbers = at::empty({2}, options);
  Tensor gradient = with_gradient ? at::empty_like(zs) : at::empty({0}, student.options());
  bool mean = static_cast<Reduction>(reduction) == Reduction::mean;
  args.student = zs.const_data_ptr();
  args.teacher = zt.const_data_ptr();
  args.student_type = dtype_of("distill_loss", student);
  args.teacher_type = dtype_of("distill_loss", teacher);
  args.rows = rows;
  args.classes = classes;
  args.ignored = ignore_index;
  args.mean = mean;
  bool on_cpu = student.is_cpu();
  args.workers = on_cpu ? workers_for(rows, classes) : rows;
  int64_t each = on_cpu ? layout::distill_floats(classes) : layout::distill_floats_on_cuda(classes);
  Tensor scratch = at::empty({args.workers * each}, options);
  Tensor sums = at::empty({math::chunks_of(rows)}, options);
  args.loss = loss.data_ptr<float>();
  args.factor = numbers.data_ptr<float>();
  args.total = args.factor + 1;
  args.gradient = with_gradient ? gradient.data_ptr() : nullptr;
  args.scratch = scratch.data_ptr<float>();
  args.sums = sums.data_ptr<float>();
  Device::run(student, [&](const auto& where) { bitpare::distill_loss(args, where); });
  if (static_cast<Reduction>(reduction) == Reduction::none) {
    return {loss.view_symint(loss_shape(student, reduction)), gradient};
  }
  return {numbers[1].clone(), gradient};
}

Result meta(const Tensor& student, const Tensor& teacher, const OptionalTensor& target,
            const OptionalTensor& row_weight, const OptionalTensor& indices,
            const OptionalTensor& logsumexp, const OptionalTensor& incoming, int64_t soft,
            double temperature, double hard_weight, double soft_weight, double smoothing,
            double target_weight, double others_weight, int64_t ignore_index, int64_t reduction,
            bool with_gradient) {
  check(student, teacher, target, row_weight, {indices, logsumexp}, incoming,
        {soft, temperature, hard_weight, soft_weight, smoothing, target_weight, others_weight,
         ignore_index, reduction});
  auto options = student.options().memory_format(std::nullopt);
  Tensor gradient =
      with_gradient ? at::empty_symint(student.sym_sizes(), options) : at::empty({0}, options);
  return {at::empty_symint(loss_shape(student, reduction), options.dtype(at::kFloat)), gradient};
}

Result call(const Tensor& student, const Tensor& teacher, const OptionalTensor& target,
            const OptionalTensor& row_weight, const TopTeacher& top, const OptionalTensor& incoming,
            const Settings& s, bool with_gradient) {
  static auto op = find_op<Signature>("bitpare::_distill_loss");
  return op.call(student, teacher, target, row_weight, top.indices, top.logsumexp, incoming, s.soft,
                 s.temperature, s.hard_weight, s.soft_weight, s.smoothing, s.target_weight,
                 s.others_weight, s.ignore_index, s.reduction, with_gradient);
}

struct Distilled : torch::autograd::Function<Distilled> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& student, const Tensor& teacher,
                        const OptionalTensor& target, const OptionalTensor& row_weight,
                        const TopTeacher& top, const Settings& s) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({student, teacher, target.value_or(Tensor()),
                                row_weight.value_or(Tensor()), top.indices.value_or(Tensor()),
                                top.logsumexp.value_or(Tensor())});
    auto& saved = context->saved_data;
    saved["soft"] = s.soft;
    saved["numbers"] = std::vector<double>{s.temperature, s.hard_weight,   s.soft_weight,
                                           s.smoothing,   s.target_weight, s.others_weight};
    saved["ignore_index"] = s.ignore_index;
    saved["reduction"] = s.reduction;
    auto [loss, gradient] =
        call(student, teacher, target, row_weight, top, std::nullopt, s, stores_gradient(student));
    if (stores_gradient(student)) saved["gradient"] = gradient;
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    Tensor result = take_stored_gradient(context, dy[0]);
    if (!result.defined()) {
      auto& saved = context->saved_data;
      auto tensors = context->get_saved_variables();
      BelowAutogradUnlessRecording below;
      auto numbers = saved["numbers"].toDoubleVector();
      Settings s = {saved["soft"].toInt(),
                    numbers[0],
                    numbers[1],
                    numbers[2],
                    numbers[3],
                    numbers[4],
                    numbers[5],
                    saved["ignore_index"].toInt(),
                    saved["reduction"].toInt()};
      TopTeacher top = {if_defined(tensors[4]), if_defined(tensors[5])};
      result = std::get<1>(call(tensors[0], tensors[1], if_defined(tensors[2]),
                                if_defined(tensors[3]), top, dy[0], s, true));
    }
    return {result, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor run(const Tensor& student, const Tensor& teacher, const OptionalTensor& target,
           const OptionalTensor& row_weight, const TopTeacher& top, const Settings& s,
           bool differentiable) {
  if (differentiable && needs_gradient(student)) {
    return Distilled::apply(student, teacher.detach(), target, row_weight, top, s);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return std::get<0>(call(student, teacher, target, row_weight, top, std::nullopt, s, false));
}

int64_t parse_reduction(const char* op, c10::string_view name) {
  return parse_name(op, "reduction", name, {"none", "mean", "sum"});
}

template <bool kDifferentiable>
Tensor distill_loss(const Tensor& student, const Tensor& teacher, const OptionalTensor& target,
                    double temperature, double alpha, int64_t ignore_index, double label_smoothing,
                    const OptionalTensor& row_weight, c10::string_view reduction,
                    c10::string_view divergence, const OptionalTensor& teacher_indices,
                    const OptionalTensor& teacher_logsumexp) {
  constexpr const char* kOp = "distill_loss";
  TORCH_CHECK(alpha >= 0 && alpha <= 1, kOp, ": alpha must be from 0 to 1, got ", alpha);
  TORCH_CHECK(label_smoothing >= 0 && label_smoothing <= 1, kOp,
              ": label_smoothing must be from 0 to 1, got ", label_smoothing);
  double hard = target ? alpha : 0.0;
  int64_t soft = 1 + parse_name(kOp, "divergence", divergence, {"forward", "reverse", "js"});
  Settings s = {
      soft, temperature, hard,         (1.0 - hard) * temperature * temperature, label_smoothing,
      1.0,  1.0,         ignore_index, parse_reduction(kOp, reduction)};
  TopTeacher top = {teacher_indices, teacher_logsumexp};
  return run(student, teacher, target, row_weight, top, s, kDifferentiable);
}

template <bool kDifferentiable>
Tensor dkd_loss(const Tensor& student, const Tensor& teacher, const Tensor& target,
                double temperature, double alpha, double beta, int64_t ignore_index,
                const OptionalTensor& row_weight, c10::string_view reduction) {
  constexpr const char* kOp = "dkd_loss";
  TORCH_CHECK(alpha >= 0 && beta >= 0, kOp, ": alpha and beta must not be negative, got ", alpha,
              " and ", beta);
  TORCH_CHECK(target.scalar_type() == at::kLong, kOp, ": target must be classes (int64), got ",
              target.scalar_type());
  Settings s = {static_cast<int64_t>(Soft::decoupled),
                temperature,
                0.0,
                temperature * temperature,
                0.0,
                alpha,
                beta,
                ignore_index,
                parse_reduction(kOp, reduction)};
  return run(student, teacher, target, row_weight, {}, s, kDifferentiable);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "distill_loss(Tensor student_logits, Tensor teacher_logits, Tensor? target=None, *, "
      "float temperature=4.0, float alpha=0.5, int ignore_index=-100, float label_smoothing=0.0, "
      "Tensor? row_weight=None, str reduction='mean', str divergence='forward', "
      "Tensor? teacher_indices=None, Tensor? teacher_logsumexp=None) -> Tensor",
      tags());
  m.def(
      "dkd_loss(Tensor student_logits, Tensor teacher_logits, Tensor target, *, "
      "float temperature=4.0, float alpha=1.0, float beta=8.0, int ignore_index=-100, "
      "Tensor? row_weight=None, str reduction='mean') -> Tensor",
      tags());
  m.def(
      "_distill_loss(Tensor student, Tensor teacher, Tensor? target, Tensor? row_weight, "
      "Tensor? indices, Tensor? logsumexp, Tensor? incoming, int soft, float temperature, "
      "float hard_weight, float soft_weight, float smoothing, float target_weight, "
      "float others_weight, int ignore_index, int reduction, bool with_gradient) -> "
      "(Tensor, Tensor)",
      tags());
  composite(m, "distill_loss", distill_loss<false>, distill_loss<true>);
  composite(m, "dkd_loss", dkd_loss<false>, dkd_loss<true>);
  kernels(m, "_distill_loss", body<Cpu>, body<Cuda>, meta);
  no_derivative(m, "_distill_loss");
}

}  // namespace bitpare::ops
