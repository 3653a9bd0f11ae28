#include "kernels/dist_loss.h"

#include "ops/taught_loss.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "dist_loss";

struct DistOp {
  static constexpr const char* kPrivate = "bitpare::_dist_loss";

  static void check(const Tensor& student, const Tensor& teacher, const OptionalTensor& row_weight,
                    const OptionalTensor& incoming, double temperature, double, double) {
    TORCH_CHECK(student.dim() > 1, kOp, ": logits must be [rows, classes], got ",
                student.sym_sizes());
    c10::SymInt rows = 1;
    for (const c10::SymInt& size : student.sym_sizes().slice(0, student.dim() - 1)) rows *= size;
    check_taught(kOp, student, teacher, row_weight, rows, incoming);
    check_same_shape(kOp, student, teacher);
    TORCH_CHECK(temperature > 0, kOp, ": temperature must be above 0, got ", temperature);
  }
};

// With one class nothing correlates: the loss is 0. Rows are all but the last dimension.
template <class Device>
LossAndGradient body(const Tensor& student, const Tensor& teacher, const OptionalTensor& row_weight,
                     const OptionalTensor& incoming, double temperature, double beta, double gamma,
                     bool with_gradient) {
  Device::require(kOp, student);
  DistOp::check(student, teacher, row_weight, incoming, temperature, beta, gamma);
  TaughtTensors tensors(student, teacher, row_weight, incoming, with_gradient);
  if (student.numel() == 0) return tensors.results();
  if (student.size(-1) == 1) {
    tensors.gradient.zero_();
    return tensors.results();
  }
  DistLoss args = {};
  args.student = tensors.student.const_data_ptr();
  args.teacher = tensors.teacher.const_data_ptr();
  args.dtype = dtype_of(kOp, student);
  if (row_weight) args.weight = tensors.weight.const_data_ptr<float>();
  args.classes = student.size(-1);
  args.rows = student.numel() / args.classes;
  args.temperature = static_cast<float>(temperature);
  args.between = static_cast<float>(beta);
  args.within = static_cast<float>(gamma);
  Tensor scratch = at::empty({layout::dist_floats(args.rows, args.classes)}, tensors.floats);
  args.scratch = scratch.data_ptr<float>();
  tensors.give(&args);
  Device::run(student, [&](const auto& where) { bitpare::dist_loss(args, where); });
  return tensors.results();
}

template <bool kDifferentiable>
Tensor dist_loss(const Tensor& student, const Tensor& teacher, double temperature, double beta,
                 double gamma, const OptionalTensor& row_weight) {
  check_features(kOp, student, teacher);
  return taught_loss<DistOp, kDifferentiable, double, double, double>(student, teacher, row_weight,
                                                                      temperature, beta, gamma);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "dist_loss(Tensor student_logits, Tensor teacher_logits, *, float temperature=4.0, "
      "float beta=2.0, float gamma=2.0, Tensor? row_weight=None) -> Tensor",
      tags());
  m.def(
      "_dist_loss(Tensor student, Tensor teacher, Tensor? row_weight, Tensor? incoming, "
      "float temperature, float beta, float gamma, bool with_gradient) -> (Tensor, Tensor)",
      tags());
  composite(m, "dist_loss", dist_loss<false>, dist_loss<true>);
  kernels(m, "_dist_loss", body<Cpu>, body<Cuda>, taught_loss_meta<DistOp, double, double, double>);
  no_derivative(m, "_dist_loss");
}

}  // namespace bitpare::ops
