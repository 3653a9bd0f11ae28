#include "kernels/attention_transfer.h"

#include "ops/taught_loss.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "attention_transfer";

struct AttentionOp {
  static constexpr const char* kPrivate = "bitpare::_attention_transfer";

  static void check(const Tensor& student, const Tensor& teacher, const OptionalTensor& row_weight,
                    const OptionalTensor& incoming) {
    check_taught(kOp, student, teacher, row_weight, 0, incoming);
    auto a = student.sym_sizes(), b = teacher.sym_sizes();
    TORCH_CHECK(
        a.size() > 2 && a.size() == b.size() && a[0] == b[0] && a.slice(2).equals(b.slice(2)), kOp,
        ": student and teacher must agree in all but channels, got ", a, " and ", b);
  }
};

template <class Device>
LossAndGradient body(const Tensor& student, const Tensor& teacher, const OptionalTensor& row_weight,
                     const OptionalTensor& incoming, bool with_gradient) {
  Device::require(kOp, student);
  AttentionOp::check(student, teacher, row_weight, incoming);
  TaughtTensors tensors(student, teacher, row_weight, incoming, with_gradient);
  if (student.numel() == 0 || teacher.numel() == 0) return tensors.results();
  AttentionTransfer args = {};
  args.student = tensors.student.const_data_ptr();
  args.teacher = tensors.teacher.const_data_ptr();
  args.dtype = dtype_of(kOp, student);
  args.images = student.size(0);
  args.student_channels = student.size(1);
  args.teacher_channels = teacher.size(1);
  args.pixels = student.numel() / (args.images * args.student_channels);
  args.workers = args.images;
  if (student.is_cpu()) args.workers = std::min<int64_t>(args.images, at::get_num_threads());
  Tensor scratch =
      at::empty({args.workers * layout::attention_floats(args.pixels)}, tensors.floats);
  Tensor losses = at::empty({args.images + math::chunks_of(args.images)}, tensors.floats);
  args.scratch = scratch.data_ptr<float>();
  args.losses = losses.data_ptr<float>();
  tensors.give(&args);
  Device::run(student, [&](const auto& where) { bitpare::attention_transfer(args, where); });
  return tensors.results();
}

template <bool kDifferentiable>
Tensor attention_transfer(const Tensor& student, const Tensor& teacher) {
  check_features(kOp, student, teacher);
  return taught_loss<AttentionOp, kDifferentiable>(student, teacher, std::nullopt);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def("attention_transfer(Tensor student, Tensor teacher) -> Tensor", tags());
  m.def(
      "_attention_transfer(Tensor student, Tensor teacher, Tensor? row_weight, Tensor? incoming, "
      "bool with_gradient) -> (Tensor, Tensor)",
      tags());
  composite(m, "attention_transfer", attention_transfer<false>, attention_transfer<true>);
  kernels(m, "_attention_transfer", body<Cpu>, body<Cuda>, taught_loss_meta<AttentionOp>);
  no_derivative(m, "_attention_transfer");
}

}  // namespace bitpare::ops
