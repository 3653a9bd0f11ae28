#include "kernels/relation_loss.h"

#include "ops/taught_loss.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "relation_loss";

struct RelationOp {
  static constexpr const char* kPrivate = "bitpare::_relation_loss";

  static void check(const Tensor& student, const Tensor& teacher, const OptionalTensor& row_weight,
                    const OptionalTensor& incoming, double, double) {
    check_taught(kOp, student, teacher, row_weight, 0, incoming);
    TORCH_CHECK(student.scalar_type() == at::kFloat, kOp, ": student must be float32, got ",
                student.scalar_type());
    TORCH_CHECK(
        student.dim() > 1 && teacher.dim() > 1 && student.sym_size(0) == teacher.sym_size(0), kOp,
        ": student and teacher must be of the same samples, got ", student.sym_sizes(), " and ",
        teacher.sym_sizes());
  }
};

template <class Device>
LossAndGradient body(const Tensor& student, const Tensor& teacher, const OptionalTensor& row_weight,
                     const OptionalTensor& incoming, double distance, double angle,
                     bool with_gradient) {
  Device::require(kOp, student);
  RelationOp::check(student, teacher, row_weight, incoming, distance, angle);
  TaughtTensors tensors(student, teacher, row_weight, incoming, with_gradient);
  if (student.numel() == 0 || teacher.numel() == 0) return tensors.results();
  RelationLoss args = {};
  args.student = tensors.student.const_data_ptr<float>();
  args.teacher = tensors.teacher.const_data_ptr<float>();
  args.samples = student.size(0);
  args.student_size = student.numel() / args.samples;
  args.teacher_size = teacher.numel() / args.samples;
  args.distance = distance;
  args.angle = angle;
  Tensor scratch =
      at::empty({layout::relation_doubles(args.samples)}, tensors.floats.dtype(at::kDouble));
  args.scratch = scratch.data_ptr<double>();
  tensors.give(&args);
  Device::run(student, [&](const auto& where) { bitpare::relation_loss(args, where); });
  return tensors.results();
}

// Features are read once for each sample, so half-precision ones are converted first.
template <bool kDifferentiable>
Tensor relation_loss(const Tensor& student, const Tensor& teacher, double distance, double angle) {
  check_features(kOp, student, teacher);
  return taught_loss<RelationOp, kDifferentiable, double, double>(
      student.to(at::kFloat), teacher.to(at::kFloat), std::nullopt, distance, angle);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "relation_loss(Tensor student, Tensor teacher, *, float distance=1.0, float angle=2.0) -> "
      "Tensor",
      tags());
  m.def(
      "_relation_loss(Tensor student, Tensor teacher, Tensor? row_weight, Tensor? incoming, "
      "float distance, float angle, bool with_gradient) -> (Tensor, Tensor)",
      tags());
  composite(m, "relation_loss", relation_loss<false>, relation_loss<true>);
  kernels(m, "_relation_loss", body<Cpu>, body<Cuda>, taught_loss_meta<RelationOp, double, double>);
  no_derivative(m, "_relation_loss");
}

}  // namespace bitpare::ops
