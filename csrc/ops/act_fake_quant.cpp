#include "kernels/act_fake_quant.h"

#include "ops/control.h"
#include "ops/overwrite.h"
#include "ops/straight_through.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "act_fake_quant";

using ForwardSignature = std::tuple<Tensor, Tensor>(
    const Tensor& x, const OptionalTensor& other, const Tensor& scale,
    const OptionalTensor& zero_point, const Tensor& control, const OptionalTensor& pending,
    int64_t activation, bool save_inside, at::MemoryFormat memory_format);
using GradientSignature = Tensor(const Tensor& dy, const Tensor& x, const Tensor& inside,
                                 int64_t activation, at::MemoryFormat memory_format);

// The op's arguments besides the values.
struct Arguments {
  const Tensor& scale;
  const OptionalTensor& zero_point;
  const Tensor& control;
  const OptionalTensor& pending;
  Activation activation;
};

void check_other(const Tensor& x, const Tensor& other, Activation activation) {
  TORCH_CHECK(other.scalar_type() == x.scalar_type(), kOp, ": other must be ", x.scalar_type(),
              " like x, got ", other.scalar_type());
  TORCH_CHECK(other.sym_sizes() == x.sym_sizes(), kOp, ": other must have shape ", x.sym_sizes(),
              " like x (it is not broadcast), got ", other.sym_sizes());
  TORCH_CHECK(is_mask(activation), kOp,
              ": other goes with activation 'none', 'relu' and 'relu6' only, whose gradient needs "
              "no x; add before the call");
}

void check(const Tensor& x, const OptionalTensor& other, const Tensor& scale,
           const OptionalTensor& zero_point, const Tensor& control, const OptionalTensor& pending,
           int64_t activation, at::MemoryFormat format) {
  check_input(kOp, x);
  check_choice(kOp, "activation", activation, Activation::hardsigmoid);
  check_format(kOp, x, format, {});
  if (other) check_other(x, *other, static_cast<Activation>(activation));
  check_state(kOp, x, scale, zero_point, control, pending);
}

template <class Device>
std::tuple<Tensor, Tensor> forward(const Tensor& x, const OptionalTensor& other,
                                   const Tensor& scale, const OptionalTensor& zero_point,
                                   const Tensor& control, const OptionalTensor& pending,
                                   int64_t activation, bool save_inside, at::MemoryFormat format) {
  Device::require(kOp, x);
  check(x, other, scale, zero_point, control, pending, activation, format);
  Tensor source = x.contiguous(format), added = other ? other->contiguous(format) : Tensor();
  Tensor y = at::empty_like(source), inside = new_bits(source, save_inside);
  if (x.numel() == 0) return {y, inside};
  Tensor grid = control.contiguous(), partial;
  auto q = quantizer_in<Device>(kOp, scale, zero_point, grid);
  if (!Device::kSeesValues && pending) {
    partial =
        at::empty({kActTerms * ((x.numel() + kActElements - 1) / kActElements)}, scale.options());
  }
  ActFakeQuant args = {source.const_data_ptr(),
                       other ? added.const_data_ptr() : nullptr,
                       y.data_ptr(),
                       save_inside ? static_cast<uint64_t*>(inside.data_ptr()) : nullptr,
                       x.numel(),
                       dtype_of(kOp, x),
                       static_cast<Activation>(activation),
                       q.quantizer.scale,
                       q.quantizer.zero_point,
                       control_of(grid),
                       pending ? pending->data_ptr<float>() : nullptr,
                       partial.defined() ? partial.data_ptr<float>() : nullptr};
  Device::run(x, [&](const auto& where) { bitpare::act_fake_quant(args, where); });
  return {y, inside};
}

std::tuple<Tensor, Tensor> forward_meta(const Tensor& x, const OptionalTensor& other,
                                        const Tensor& scale, const OptionalTensor& zero_point,
                                        const Tensor& control, const OptionalTensor& pending,
                                        int64_t activation, bool save_inside,
                                        at::MemoryFormat format) {
  check(x, other, scale, zero_point, control, pending, activation, format);
  return {at::empty_like(x, x.options(), format), new_bits(x, save_inside)};
}

// dy, dx: dense in the layout of `format`; they may be the same.
template <class Device>
void write_gradient(const Tensor& dy, const Tensor& x, const Tensor& inside, int64_t activation,
                    at::MemoryFormat format, const Tensor& dx) {
  Tensor source = x.contiguous(format);
  Array<uint64_t> bits(inside);
  ActFakeQuantGradient args = {dy.const_data_ptr(),
                               source.const_data_ptr(),
                               bits.data(),
                               dx.data_ptr(),
                               x.numel(),
                               dtype_of(kOp, x),
                               static_cast<Activation>(activation)};
  Device::run(x, [&](const auto& where) { act_fake_quant_gradient(args, where); });
}

void check_gradient(const Tensor& dy, const Tensor& x, const Tensor& inside, int64_t activation,
                    at::MemoryFormat format) {
  check_input(kOp, x);
  check_choice(kOp, "activation", activation, Activation::hardsigmoid);
  check_format(kOp, x, format, {});
  check_like(kOp, "dy", dy, x);
  check_bits(kOp, "inside", inside, x.sym_numel());
}

template <class Device>
Tensor gradient(const Tensor& dy, const Tensor& x, const Tensor& inside, int64_t activation,
                at::MemoryFormat format) {
  Device::require(kOp, x);
  check_gradient(dy, x, inside, activation, format);
  Tensor source = dy.contiguous(format), dx = at::empty_like(source);
  write_gradient<Device>(source, x, inside, activation, format, dx);
  return dx;
}

Tensor gradient_meta(const Tensor& dy, const Tensor& x, const Tensor& inside, int64_t activation,
                     at::MemoryFormat format) {
  check_gradient(dy, x, inside, activation, format);
  return at::empty_like(x, x.options(), format);
}

std::tuple<Tensor, Tensor> call_forward(const Tensor& x, const OptionalTensor& other,
                                        const Arguments& a, bool save_inside,
                                        at::MemoryFormat format) {
  static auto op = find_op<ForwardSignature>("bitpare::_act_fake_quant");
  return op.call(x, other, a.scale, a.zero_point, a.control, a.pending,
                 static_cast<int64_t>(a.activation), save_inside, format);
}

// One bit an element says all: x and other get the same gradient.
struct Masked : torch::autograd::Function<Masked> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& x, const OptionalTensor& other,
                        const Arguments& a, at::MemoryFormat format) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [y, inside] = call_forward(x, other, a, true, format);
    context->save_for_backward({inside});
    context->saved_data["format"] = static_cast<int64_t>(format);
    context->saved_data["needs_x"] = x.requires_grad();
    context->saved_data["needs_other"] = other && other->requires_grad();
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    auto& saved = context->saved_data;
    Tensor inside = context->get_saved_variables()[0];
    BelowAutogradUnlessRecording below;
    Tensor dx = straight_through_or_over(dy[0], inside,
                                         static_cast<at::MemoryFormat>(saved["format"].toInt()));
    return {saved["needs_x"].toBool() ? dx : Tensor(),
            saved["needs_other"].toBool() ? dx : Tensor(), Tensor(), Tensor()};
  }
};

// The gradient depends on x, so x is saved with the bits.
struct Shaped : torch::autograd::Function<Shaped> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& x, const Arguments& a,
                        at::MemoryFormat format) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [y, inside] = call_forward(x, std::nullopt, a, true, format);
    context->save_for_backward({x, inside});
    context->saved_data["activation"] = static_cast<int64_t>(a.activation);
    context->saved_data["format"] = static_cast<int64_t>(format);
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    static auto op = find_op<GradientSignature>("bitpare::_act_fake_quant_gradient");
    auto tensors = context->get_saved_variables();
    BelowAutogradUnlessRecording below;
    int64_t activation = context->saved_data["activation"].toInt();
    auto format = static_cast<at::MemoryFormat>(context->saved_data["format"].toInt());
    if (!may_overwrite(dy[0], format)) {
      return {op.call(dy[0], tensors[0], tensors[1], activation, format), Tensor(), Tensor()};
    }
    RECORD_FUNCTION("bitpare::_act_fake_quant_gradient in place", {});
    write_gradient<Cpu>(dy[0], tensors[0], tensors[1], activation, format, dy[0]);
    return {dy[0], Tensor(), Tensor()};
  }
};

Arguments parsed(const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point,
                 const Tensor& control, const OptionalTensor& pending,
                 c10::string_view activation) {
  check_input(kOp, x);
  auto chosen = static_cast<Activation>(parse_name(
      kOp, "activation", activation, {"none", "relu", "relu6", "hardswish", "hardsigmoid"}));
  return {scale, zero_point, control, pending, chosen};
}

Tensor without_gradient(const Tensor& x, const OptionalTensor& other, const Tensor& scale,
                        const OptionalTensor& zero_point, const Tensor& control,
                        const OptionalTensor& pending, c10::string_view activation) {
  Arguments a = parsed(x, scale, zero_point, control, pending, activation);
  return std::get<0>(call_forward(x, other, a, false, x.suggest_memory_format()));
}

Tensor autograd(const Tensor& x, const OptionalTensor& other, const Tensor& scale,
                const OptionalTensor& zero_point, const Tensor& control,
                const OptionalTensor& pending, c10::string_view activation) {
  if (pending) bump_version(*pending);
  if (!needs_gradient(x) && !(other && needs_gradient(*other))) {
    at::AutoDispatchBelowADInplaceOrView below;
    return without_gradient(x, other, scale, zero_point, control, pending, activation);
  }
  Arguments a = parsed(x, scale, zero_point, control, pending, activation);
  at::MemoryFormat format = x.suggest_memory_format();
  if (other) check_other(x, *other, a.activation);  // Shaped has no place for it
  return is_mask(a.activation) ? Masked::apply(x, other, a, format) : Shaped::apply(x, a, format);
}

// Runs where autograd() has not run before it, as in inference mode.
std::tuple<Tensor, Tensor> written(c10::DispatchKeySet keys, const Tensor& x,
                                   const OptionalTensor& other, const Tensor& scale,
                                   const OptionalTensor& zero_point, const Tensor& control,
                                   const OptionalTensor& pending, int64_t activation,
                                   bool save_inside, at::MemoryFormat format) {
  static auto op = find_op<ForwardSignature>("bitpare::_act_fake_quant");
  if (pending) bump_version(*pending);
  return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, x, other, scale, zero_point,
                       control, pending, activation, save_inside, format);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "act_fake_quant(Tensor x, Tensor? other, Tensor scale, Tensor? zero_point, Tensor control, "
      "Tensor(a!)? pending, *, str activation='none') -> Tensor",
      tags());
  m.def(
      "_act_fake_quant(Tensor x, Tensor? other, Tensor scale, Tensor? zero_point, Tensor control, "
      "Tensor(a!)? pending, int activation, bool save_inside, MemoryFormat memory_format) -> "
      "(Tensor, Tensor)",
      tags());
  m.def(
      "_act_fake_quant_gradient(Tensor dy, Tensor x, Tensor inside, int activation, "
      "MemoryFormat memory_format) -> Tensor",
      tags());
  composite(m, "act_fake_quant", without_gradient, autograd);
  kernels(m, "_act_fake_quant", forward<Cpu>, forward<Cuda>, forward_meta);
  no_derivative(m, "_act_fake_quant");
  kernels(m, "_act_fake_quant_gradient", gradient<Cpu>, gradient<Cuda>, gradient_meta);
  no_derivative(m, "_act_fake_quant_gradient");
}
TORCH_LIBRARY_IMPL(bitpare, ADInplaceOrView, m) { m.impl("_act_fake_quant", written); }

}  // namespace bitpare::ops
