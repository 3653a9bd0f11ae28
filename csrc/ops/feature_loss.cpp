#include "kernels/feature_loss.h"

#include "ops/features.h"
#include "ops/stored_gradient.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "feature_loss";

using Result = std::tuple<Tensor, Tensor>;
using Signature = Result(const Tensor& student, const Tensor& teacher,
                         const OptionalTensor& incoming, int64_t kind, int64_t start_dim,
                         bool with_gradient);

template <class Device>
Result body(const Tensor& student, const Tensor& teacher, const OptionalTensor& incoming,
            int64_t kind, int64_t start_dim, bool with_gradient) {
  Device::require(kOp, student);
  Tensor s = student.contiguous(), t = teacher.contiguous(), dy;
  int64_t rows = 1;
  for (int64_t d = 0; d < start_dim; ++d) rows *= s.size(d);
  auto options = student.options().dtype(at::kFloat).memory_format(std::nullopt);
  Tensor loss = at::zeros({}, options);
  Tensor gradient = with_gradient ? at::empty_like(s) : at::empty({0}, student.options());
  if (s.numel() == 0) return {loss, gradient};
  FeatureLoss args = {};
  args.kind = static_cast<FeatureKind>(kind);
  args.rows = rows;
  args.n = s.numel() / rows;
  Tensor partial = at::empty({math::feature_partials(args.kind, rows, args.n)}, options);
  Tensor found = at::empty({rows, 3}, options), sums = at::empty({rows}, options);
  if (incoming) {
    dy = incoming->to(at::kFloat).contiguous();
    args.incoming = dy.const_data_ptr<float>();
  }
  args.student = s.const_data_ptr();
  args.teacher = t.const_data_ptr();
  args.dtype = dtype_of(kOp, student);
  args.loss = loss.data_ptr<float>();
  args.gradient = with_gradient ? gradient.data_ptr() : nullptr;
  args.partial = partial.data_ptr<float>();
  args.found = reinterpret_cast<FeatureRow*>(found.data_ptr<float>());
  args.sums = sums.data_ptr<float>();
  Device::run(student, [&](const auto& where) { bitpare::feature_loss(args, where); });
  return {loss, gradient};
}

Result meta(const Tensor& student, const Tensor&, const OptionalTensor&, int64_t, int64_t,
            bool with_gradient) {
  auto options = student.options().memory_format(std::nullopt);
  Tensor gradient =
      with_gradient ? at::empty_symint(student.sym_sizes(), options) : at::empty({0}, options);
  return {at::empty({}, options.dtype(at::kFloat)), gradient};
}

Result call(const Tensor& student, const Tensor& teacher, const OptionalTensor& incoming,
            int64_t kind, int64_t start_dim, bool with_gradient) {
  static auto op = find_op<Signature>("bitpare::_feature_loss");
  return op.call(student, teacher, incoming, kind, start_dim, with_gradient);
}

struct Apart : torch::autograd::Function<Apart> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& student, const Tensor& teacher,
                        int64_t kind, int64_t start_dim) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({student, teacher});
    context->saved_data["kind"] = kind;
    context->saved_data["start_dim"] = start_dim;
    auto [loss, gradient] =
        call(student, teacher, std::nullopt, kind, start_dim, stores_gradient(student));
    if (stores_gradient(student)) context->saved_data["gradient"] = gradient;
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    Tensor result = take_stored_gradient(context, dy[0]);
    if (!result.defined()) {
      auto tensors = context->get_saved_variables();
      BelowAutogradUnlessRecording below;
      auto& saved = context->saved_data;
      result = std::get<1>(call(tensors[0], tensors[1], dy[0], saved["kind"].toInt(),
                                saved["start_dim"].toInt(), true));
    }
    return {result, Tensor(), Tensor(), Tensor()};
  }
};

template <bool kDifferentiable>
Tensor feature_loss(const Tensor& student, const Tensor& teacher, c10::string_view kind,
                    int64_t start_dim) {
  check_features(kOp, student, teacher);
  check_same_shape(kOp, student, teacher);
  int64_t which = parse_name(kOp, "kind", kind, {"mse", "l1", "cosine", "normalized"});
  int64_t dims = student.dim(), start = 0;
  if (math::of_rows(static_cast<FeatureKind>(which))) {
    TORCH_CHECK(start_dim >= -dims && start_dim < dims, kOp, ": start_dim must be a dimension of ",
                student.sym_sizes(), ", got ", start_dim);
    start = start_dim < 0 ? start_dim + dims : start_dim;
  }
  Tensor s = student, t = teacher.detach();
  if (s.scalar_type() == at::kDouble) s = s.to(at::kFloat);
  if (s.scalar_type() != t.scalar_type()) {  // of two types: both as floats
    s = s.to(at::kFloat);
    t = t.to(at::kFloat);
  }
  if (kDifferentiable && needs_gradient(s)) return Apart::apply(s, t, which, start);
  at::AutoDispatchBelowADInplaceOrView below;
  return std::get<0>(call(s, t, std::nullopt, which, start, false));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "feature_loss(Tensor student, Tensor teacher, *, str kind='mse', int start_dim=1) -> Tensor",
      tags());
  m.def(
      "_feature_loss(Tensor student, Tensor teacher, Tensor? incoming, int kind, int start_dim, "
      "bool with_gradient) -> (Tensor, Tensor)",
      tags());
}
TORCH_LIBRARY_IMPL(bitpare, CPU, m) { m.impl("_feature_loss", body<Cpu>); }
TORCH_LIBRARY_IMPL(bitpare, CUDA, m) { m.impl("_feature_loss", body<Cuda>); }
TORCH_LIBRARY_IMPL(bitpare, Meta, m) { m.impl("_feature_loss", meta); }
TORCH_LIBRARY_IMPL(bitpare, CompositeExplicitAutograd, m) {
  m.impl("feature_loss", feature_loss<false>);
}
TORCH_LIBRARY_IMPL(bitpare, Autograd, m) {
  m.impl("feature_loss", feature_loss<true>);
  m.impl("_feature_loss", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace bitpare::ops
