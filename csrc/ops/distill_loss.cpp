#include "ops/distill_loss.h"

#include <ATen/Parallel.h>

namespace bitpare::ops {
namespace {

using distill::Options;
using distill::Reduction;
using distill::Settings;
using Result = std::tuple<Tensor, Tensor>;

// The arguments of distill_loss.
struct DistillOptions {
  const Tensor& student;
  const Tensor& teacher;
  const OptionalTensor& target;
  double temperature, alpha;
  int64_t ignore_index;
  double label_smoothing;
  const OptionalTensor& row_weight;
  c10::string_view reduction, divergence;
  const OptionalTensor& teacher_indices;
  const OptionalTensor& teacher_logsumexp;

  auto fields() const {
    return std::tie(student, teacher, target, temperature, alpha, ignore_index, label_smoothing,
                    row_weight, reduction, divergence, teacher_indices, teacher_logsumexp);
  }
};

// The arguments of dkd_loss.
struct DkdOptions {
  const Tensor& student;
  const Tensor& teacher;
  const Tensor& target;
  double temperature, alpha, beta;
  int64_t ignore_index;
  const OptionalTensor& row_weight;
  c10::string_view reduction;

  auto fields() const {
    return std::tie(student, teacher, target, temperature, alpha, beta, ignore_index, row_weight,
                    reduction);
  }
};

c10::SymDimVector loss_shape(const Tensor& student, int64_t reduction) {
  auto sizes = student.sym_sizes();
  if (static_cast<Reduction>(reduction) != Reduction::none) return {};
  return {sizes.begin(), sizes.end() - 1};
}

// How many rows are processed at once: each needs a workspace.
int64_t workers_for(int64_t rows, int64_t classes) {
  int64_t tasks = rows * classes / (1 << 14);
  return std::max<int64_t>(1, std::min<int64_t>({at::get_num_threads(), rows, tasks}));
}

template <class Device>
Result body(const Options& o) {
  Device::require("distill_loss", o.student);
  distill::check(o);
  DistillLoss args = {};
  distill::Inputs in = distill::add_inputs(o, Device::kSeesValues, &args);
  auto reduction = static_cast<Reduction>(o.settings.reduction);
  auto options = o.student.options().dtype(at::kFloat).memory_format(std::nullopt);
  Tensor loss = at::empty({args.rows}, options), factor_and_total = at::empty({2}, options);
  Tensor gradient = at::empty({0}, o.student.options());
  if (o.with_gradient) gradient = at::empty_like(in.student);
  args.mean = reduction == Reduction::mean;
  bool on_cpu = o.student.is_cpu();
  args.workers = on_cpu ? workers_for(args.rows, args.classes) : args.rows;
  int64_t each =
      on_cpu ? layout::distill_floats(args.classes) : layout::distill_floats_on_cuda(args.classes);
  Tensor scratch = at::empty({args.workers * each}, options);
  Tensor sums = at::empty({math::chunks_of(args.rows)}, options);
  args.loss = loss.data_ptr<float>();
  args.factor = factor_and_total.data_ptr<float>();
  args.total = args.factor + 1;
  args.gradient = o.with_gradient ? gradient.data_ptr() : nullptr;
  args.scratch = scratch.data_ptr<float>();
  args.sums = sums.data_ptr<float>();
  Device::run(o.student, [&](const auto& where) { bitpare::distill_loss(args, where); });
  if (reduction == Reduction::none) {
    return {loss.view_symint(loss_shape(o.student, o.settings.reduction)), gradient};
  }
  return {factor_and_total[1].clone(), gradient};
}

Result meta(const Options& o) {
  distill::check(o);
  auto options = o.student.options().memory_format(std::nullopt);
  Tensor gradient =
      o.with_gradient ? at::empty_symint(o.student.sym_sizes(), options) : at::empty({0}, options);
  return {at::empty_symint(loss_shape(o.student, o.settings.reduction), options.dtype(at::kFloat)),
          gradient};
}

Result call_below(const Options& options) {
  static auto op = find_op<decltype(meta)>("bitpare::_distill_loss");
  return call(op, options);
}

struct Distilled : torch::autograd::Function<Distilled> {
  static constexpr bool is_traceable = true;
  using SavedSettings = decltype(values_of(std::declval<Settings>().fields()));

  static Tensor forward(AutogradContext* context, const Tensor& student, const Options& o) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({student, o.teacher, o.target.value_or(Tensor()),
                                o.row_weight.value_or(Tensor()), o.indices.value_or(Tensor()),
                                o.logsumexp.value_or(Tensor())});
    auto& saved = context->saved_data;
    saved["settings"] = values_of(o.settings.fields());
    auto [loss, gradient] = call_below(o);
    if (o.with_gradient) saved["gradient"] = gradient;
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    Tensor result = take_stored_gradient(context, dy[0]);
    if (!result.defined()) {
      auto tensors = context->get_saved_variables();
      BelowAutogradUnlessRecording below;
      auto settings = context->saved_data["settings"].to<SavedSettings>();
      Options options = {
          .student = tensors[0],
          .teacher = tensors[1],
          .target = if_defined(tensors[2]),
          .row_weight = if_defined(tensors[3]),
          .indices = if_defined(tensors[4]),
          .logsumexp = if_defined(tensors[5]),
          .incoming = dy[0],
          .settings = std::apply([](auto... values) { return Settings{values...}; }, settings),
          .with_gradient = true,
      };
      result = std::get<1>(call_below(options));
    }
    return {result, Tensor()};
  }
};

Tensor run(const Options& o, bool differentiable) {
  if (differentiable && needs_gradient(o.student)) {
    Tensor teacher = o.teacher.detach();
    Options options = {
        .student = o.student,
        .teacher = teacher,
        .target = o.target,
        .row_weight = o.row_weight,
        .indices = o.indices,
        .logsumexp = o.logsumexp,
        .incoming = o.incoming,
        .settings = o.settings,
        .with_gradient = stores_gradient(o.student),
    };
    return Distilled::apply(o.student, options);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return std::get<0>(call_below(o));
}

int64_t parse_reduction(const char* op, c10::string_view name) {
  return parse_name(op, "reduction", name, {"none", "mean", "sum"});
}

template <bool kDifferentiable>
Tensor distill_loss(const DistillOptions& o) {
  constexpr const char* kOp = "distill_loss";
  TORCH_CHECK(o.alpha >= 0 && o.alpha <= 1, kOp, ": alpha must be from 0 to 1, got ", o.alpha);
  TORCH_CHECK(o.label_smoothing >= 0 && o.label_smoothing <= 1, kOp,
              ": label_smoothing must be from 0 to 1, got ", o.label_smoothing);
  double hard_weight = o.target ? o.alpha : 0.0;
  Settings settings = {
      .soft = 1 + parse_name(kOp, "divergence", o.divergence, {"forward", "reverse", "js"}),
      .temperature = o.temperature,
      .hard_weight = hard_weight,
      .soft_weight = (1.0 - hard_weight) * o.temperature * o.temperature,
      .smoothing = o.label_smoothing,
      .target_weight = 1.0,
      .others_weight = 1.0,
      .ignore_index = o.ignore_index,
      .reduction = parse_reduction(kOp, o.reduction),
  };
  Options options = {
      .student = o.student,
      .teacher = o.teacher,
      .target = o.target,
      .row_weight = o.row_weight,
      .indices = o.teacher_indices,
      .logsumexp = o.teacher_logsumexp,
      .incoming = kNoTensor,
      .settings = settings,
      .with_gradient = false,
  };
  return run(options, kDifferentiable);
}

template <bool kDifferentiable>
Tensor dkd_loss(const DkdOptions& o) {
  constexpr const char* kOp = "dkd_loss";
  TORCH_CHECK(o.alpha >= 0 && o.beta >= 0, kOp, ": alpha and beta must not be negative, got ",
              o.alpha, " and ", o.beta);
  TORCH_CHECK(o.target.scalar_type() == at::kLong, kOp, ": target must be classes (int64), got ",
              o.target.scalar_type());
  Settings settings = {
      .soft = static_cast<int64_t>(Soft::decoupled),
      .temperature = o.temperature,
      .hard_weight = 0.0,
      .soft_weight = o.temperature * o.temperature,
      .smoothing = 0.0,
      .target_weight = o.alpha,
      .others_weight = o.beta,
      .ignore_index = o.ignore_index,
      .reduction = parse_reduction(kOp, o.reduction),
  };
  Options options = {
      .student = o.student,
      .teacher = o.teacher,
      .target = o.target,
      .row_weight = o.row_weight,
      .indices = kNoTensor,
      .logsumexp = kNoTensor,
      .incoming = kNoTensor,
      .settings = settings,
      .with_gradient = false,
  };
  return run(options, kDifferentiable);
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
