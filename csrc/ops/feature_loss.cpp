#include "kernels/feature_loss.h"

#include "ops/taught_loss.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "feature_loss";

struct FeatureOp {
  static constexpr const char* kPrivate = "bitpare::_feature_loss";

  static void check(const Tensor& student, const Tensor& teacher, const OptionalTensor& row_weight,
                    const OptionalTensor& incoming, int64_t kind, int64_t start_dim) {
    check_taught(kOp, student, teacher, row_weight, 0, incoming);
    check_same_shape(kOp, student, teacher);
    check_choice(kOp, "kind", kind, FeatureKind::normalized);
    check_choice(kOp, "start_dim", start_dim, student.dim());
  }
};

template <class Device>
LossAndGradient body(const Tensor& student, const Tensor& teacher, const OptionalTensor& row_weight,
                     const OptionalTensor& incoming, int64_t kind, int64_t start_dim,
                     bool with_gradient) {
  Device::require(kOp, student);
  FeatureOp::check(student, teacher, row_weight, incoming, kind, start_dim);
  TaughtTensors tensors(student, teacher, row_weight, incoming, with_gradient);
  if (student.numel() == 0) return tensors.results();
  FeatureLoss args = {};
  args.kind = static_cast<FeatureKind>(kind);
  args.rows = 1;
  for (int64_t d = 0; d < start_dim; ++d) args.rows *= student.size(d);
  args.n = student.numel() / args.rows;
  Tensor partial =
      at::empty({layout::feature_floats(args.kind, args.rows, args.n)}, tensors.floats);
  Tensor units = at::empty({args.rows, 3}, tensors.floats);
  Tensor sums = at::empty({args.rows}, tensors.floats);
  args.student = tensors.student.const_data_ptr();
  args.teacher = tensors.teacher.const_data_ptr();
  args.dtype = dtype_of(kOp, student);
  tensors.give(&args);
  args.partial = partial.data_ptr<float>();
  args.units = reinterpret_cast<FeatureRow*>(units.data_ptr<float>());
  args.sums = sums.data_ptr<float>();
  Device::run(student, [&](const auto& where) { bitpare::feature_loss(args, where); });
  return tensors.results();
}

template <bool kDifferentiable>
Tensor feature_loss(const Tensor& student, const Tensor& teacher, c10::string_view kind,
                    int64_t start_dim) {
  check_features(kOp, student, teacher);
  int64_t which = parse_name(kOp, "kind", kind, {"mse", "l1", "cosine", "normalized"});
  int64_t dims = student.dim(), start = 0;
  if (math::of_rows(static_cast<FeatureKind>(which))) {
    TORCH_CHECK(start_dim >= -dims && start_dim < dims, kOp, ": start_dim must be a dimension of ",
                student.sym_sizes(), ", got ", start_dim);
    start = start_dim < 0 ? start_dim + dims : start_dim;
  }
  return taught_loss<FeatureOp, kDifferentiable, int64_t, int64_t>(student, teacher, std::nullopt,
                                                                   which, start);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "feature_loss(Tensor student, Tensor teacher, *, str kind='mse', int start_dim=1) -> Tensor",
      tags());
  m.def(
      "_feature_loss(Tensor student, Tensor teacher, Tensor? row_weight, Tensor? incoming, "
      "int kind, int start_dim, bool with_gradient) -> (Tensor, Tensor)",
      tags());
  composite(m, "feature_loss", feature_loss<false>, feature_loss<true>);
  kernels(m, "_feature_loss", body<Cpu>, body<Cuda>, taught_loss_meta<FeatureOp, int64_t, int64_t>);
  no_derivative(m, "_feature_loss");
}

}  // namespace bitpare::ops
