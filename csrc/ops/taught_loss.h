// Losses of one of a student's tensors against a teacher's. Each has a private op that gives the
// loss and its gradient in the student at once, of the form
//   (Tensor student, Tensor teacher, Tensor? row_weight, Tensor? incoming, options...,
//    bool with_gradient) -> (Tensor loss, Tensor gradient)
// with incoming times the gradient; what follows from that is here.
#pragma once
#include "ops/stored_gradient.h"

namespace bitpare::ops {

inline void check_features(const char* op, const Tensor& student, const Tensor& teacher) {
  TORCH_CHECK(student.is_floating_point() && teacher.is_floating_point(), op,
              ": student and teacher must be floating point, got ", student.scalar_type(), " and ",
              teacher.scalar_type());
}

inline void check_same_shape(const char* op, const Tensor& student, const Tensor& teacher) {
  TORCH_CHECK(student.sym_sizes().equals(teacher.sym_sizes()), op,
              ": student and teacher must have the same shape, got ", student.sym_sizes(), " and ",
              teacher.sym_sizes());
}

using LossAndGradient = std::tuple<Tensor, Tensor>;

// Checks the arguments of a private op: tensors of one type that a kernel takes, a weight for each
// of `rows`, and an incoming gradient of one number.
inline void check_taught(const char* op, const Tensor& student, const Tensor& teacher,
                         const OptionalTensor& row_weight, const c10::SymInt& rows,
                         const OptionalTensor& incoming) {
  check_features(op, student, teacher);
  dtype_of(op, student);
  TORCH_CHECK(teacher.scalar_type() == student.scalar_type(), op, ": teacher must be ",
              student.scalar_type(), " like student, got ", teacher.scalar_type());
  TORCH_CHECK(!row_weight || row_weight->sym_numel() == rows, op, ": row_weight must have ", rows,
              " elements, one for each row, got ", row_weight ? row_weight->sym_numel() : 0);
  TORCH_CHECK(!row_weight || !row_weight->is_complex(), op, ": row_weight must be real");
  TORCH_CHECK(!incoming || (incoming->sym_numel() == 1 && !incoming->is_complex()), op,
              ": incoming must be one real number");
}

// Op names a private op: static constexpr const char* kPrivate; and has its check(student, teacher,
// row_weight, incoming, options...).
template <class Op, class... Options>
struct TaughtLoss : torch::autograd::Function<TaughtLoss<Op, Options...>> {
  static constexpr bool is_traceable = true;
  using Numbers = std::tuple<Options...>;
  using Signature = LossAndGradient(const Tensor&, const Tensor&, const OptionalTensor&,
                                    const OptionalTensor&, Options..., bool);

  static LossAndGradient call(const Tensor& student, const Tensor& teacher,
                              const OptionalTensor& row_weight, const OptionalTensor& incoming,
                              Options... options, bool with_gradient) {
    static auto op = find_op<Signature>(Op::kPrivate);
    return op.call(student, teacher, row_weight, incoming, options..., with_gradient);
  }

  static Tensor forward(AutogradContext* context, const Tensor& student, const Tensor& teacher,
                        const OptionalTensor& row_weight, Options... options) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({student, teacher, row_weight.value_or(Tensor())});
    if constexpr (sizeof...(Options) > 0) context->saved_data["options"] = Numbers(options...);
    auto [loss, gradient] =
        call(student, teacher, row_weight, std::nullopt, options..., stores_gradient(student));
    if (stores_gradient(student)) context->saved_data["gradient"] = gradient;
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    Tensor result = take_stored_gradient(context, dy[0]);
    if (!result.defined()) {
      auto tensors = context->get_saved_variables();
      BelowAutogradUnlessRecording below;
      Numbers numbers;
      if constexpr (sizeof...(Options) > 0) {
        numbers = context->saved_data["options"].template to<Numbers>();
      }
      auto again = [&](Options... options) {
        return call(tensors[0], tensors[1], if_defined(tensors[2]), dy[0], options..., true);
      };
      result = std::get<1>(std::apply(again, numbers));
    }
    variable_list gradients(3 + sizeof...(Options));
    gradients[0] = result;
    return gradients;
  }
};

template <class Op, class... Options>
LossAndGradient taught_loss_meta(const Tensor& student, const Tensor& teacher,
                                 const OptionalTensor& row_weight, const OptionalTensor& incoming,
                                 Options... options, bool with_gradient) {
  Op::check(student, teacher, row_weight, incoming, options...);
  auto like = student.options().memory_format(std::nullopt);
  Tensor gradient =
      with_gradient ? at::empty_symint(student.sym_sizes(), like) : at::empty({0}, like);
  return {at::empty({}, like.dtype(at::kFloat)), gradient};
}

// Returns the loss, differentiable if wanted. Tensors of two types, and doubles, are converted to
// float32.
template <class Op, bool kDifferentiable, class... Options>
Tensor taught_loss(const Tensor& student, const Tensor& teacher, const OptionalTensor& row_weight,
                   Options... options) {
  Tensor s = student, t = teacher.detach();
  if (s.scalar_type() == at::kDouble || s.scalar_type() != t.scalar_type()) {
    s = s.to(at::kFloat);
    t = t.to(at::kFloat);
  }
  using Loss = TaughtLoss<Op, Options...>;
  if (kDifferentiable && needs_gradient(s)) return Loss::apply(s, t, row_weight, options...);
  at::AutoDispatchBelowADInplaceOrView below;
  return std::get<0>(Loss::call(s, t, row_weight, std::nullopt, options..., false));
}

// The tensors of a private op made contiguous for a kernel, and its results.
struct TaughtTensors {
  Tensor student, teacher, weight, incoming, loss, gradient;
  at::TensorOptions floats;

  TaughtTensors(const Tensor& s, const Tensor& t, const OptionalTensor& row_weight,
                const OptionalTensor& dy, bool with_gradient)
      : student(s.contiguous()),
        teacher(t.contiguous()),
        floats(s.options().dtype(at::kFloat).memory_format(std::nullopt)) {
    loss = at::zeros({}, floats);
    gradient = with_gradient ? at::empty_like(student) : at::empty({0}, s.options());
    if (row_weight) weight = row_weight->to(at::kFloat).contiguous();
    if (dy) incoming = dy->to(at::kFloat).contiguous();
  }

  LossAndGradient results() const { return {loss, gradient}; }

  // Fills the fields that the arguments of every loss kernel have.
  template <class Args>
  void give(Args* args) const {
    args->incoming = incoming.defined() ? incoming.const_data_ptr<float>() : nullptr;
    args->loss = loss.data_ptr<float>();
    using Gradient = std::remove_reference_t<decltype(args->gradient)>;
    args->gradient = nullptr;
    if (gradient.numel() > 0) args->gradient = static_cast<Gradient>(gradient.data_ptr());
  }
};

}  // namespace bitpare::ops
