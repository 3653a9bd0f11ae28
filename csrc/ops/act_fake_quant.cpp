#include "kernels/act_fake_quant.h"

#include "ops/control.h"
#include "ops/overwrite.h"
#include "ops/straight_through.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "act_fake_quant";

// The arguments of `_act_fake_quant`. activation: an Activation.
struct ForwardOptions {
  const Tensor& x;
  const OptionalTensor& other;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  const Tensor& control;
  const OptionalTensor& pending;
  int64_t activation;
  bool save_inside;
  at::MemoryFormat format;

  auto fields() const {
    return std::tie(x, other, scale, zero_point, control, pending, activation, save_inside, format);
  }
};

// The arguments of `_act_fake_quant_gradient`.
struct GradientOptions {
  const Tensor& dy;
  const Tensor& x;
  const Tensor& inside;
  int64_t activation;
  at::MemoryFormat format;

  auto fields() const { return std::tie(dy, x, inside, activation, format); }
};

// The arguments of the public op.
struct PublicOptions {
  const Tensor& x;
  const OptionalTensor& other;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  const Tensor& control;
  const OptionalTensor& pending;
  c10::string_view activation;

  auto fields() const {
    return std::tie(x, other, scale, zero_point, control, pending, activation);
  }
};

void check_other(const ForwardOptions& o) {
  if (!o.other) return;
  TORCH_CHECK(o.other->scalar_type() == o.x.scalar_type(), kOp, ": other must be ",
              o.x.scalar_type(), " like x, got ", o.other->scalar_type());
  TORCH_CHECK(o.other->sym_sizes() == o.x.sym_sizes(), kOp, ": other must have shape ",
              o.x.sym_sizes(), " like x (it is not broadcast), got ", o.other->sym_sizes());
  TORCH_CHECK(
      is_mask(static_cast<Activation>(o.activation)), kOp,
      ": other needs activation 'none', 'relu' or 'relu6'; for others add it to x before the call");
}

void check(const ForwardOptions& o) {
  check_input(kOp, o.x);
  check_choice(kOp, "activation", o.activation, Activation::hardsigmoid);
  check_format(kOp, o.x, o.format, {});
  check_other(o);
  check_state(kOp, o);
}

template <class Device>
std::tuple<Tensor, Tensor> forward(const ForwardOptions& o) {
  Device::require(kOp, o.x);
  check(o);
  Tensor source = o.x.contiguous(o.format), other;
  if (o.other) other = o.other->contiguous(o.format);
  Tensor y = at::empty_like(source), inside = new_bits(source, o.save_inside);
  int64_t n = o.x.numel();
  if (n == 0) return {y, inside};
  Tensor control = o.control.contiguous(), partial;
  auto q = quantizer_in<Device>(kOp, o.scale, o.zero_point, control);
  if (!Device::kSeesValues && o.pending) {
    partial = at::empty({kActTerms * ((n + kActElements - 1) / kActElements)}, o.scale.options());
  }
  ActFakeQuant args = {
      .x = source.const_data_ptr(),
      .other = o.other ? other.const_data_ptr() : nullptr,
      .y = y.data_ptr(),
      .inside = o.save_inside ? static_cast<uint64_t*>(inside.data_ptr()) : nullptr,
      .n = n,
      .dtype = dtype_of(kOp, o.x),
      .activation = static_cast<Activation>(o.activation),
      .scale = q.quantizer.scale,
      .zero_point = q.quantizer.zero_point,
      .control = control_of(control),
      .pending = o.pending ? o.pending->data_ptr<float>() : nullptr,
      .partial = partial.defined() ? partial.data_ptr<float>() : nullptr,
  };
  Device::run(o.x, [&](const auto& where) { bitpare::act_fake_quant(args, where); });
  return {y, inside};
}

std::tuple<Tensor, Tensor> forward_meta(const ForwardOptions& o) {
  check(o);
  return {at::empty_like(o.x, o.x.options(), o.format), new_bits(o.x, o.save_inside)};
}

// dy, dx: dense in the layout of o.format; they may be the same.
template <class Device>
void write_gradient(const GradientOptions& o, const Tensor& dy, const Tensor& dx) {
  Tensor source = o.x.contiguous(o.format);
  Array<uint64_t> bits(o.inside);
  ActFakeQuantGradient args = {
      .dy = dy.const_data_ptr(),
      .x = source.const_data_ptr(),
      .inside = bits.data(),
      .dx = dx.data_ptr(),
      .n = o.x.numel(),
      .dtype = dtype_of(kOp, o.x),
      .activation = static_cast<Activation>(o.activation),
  };
  Device::run(o.x, [&](const auto& where) { act_fake_quant_gradient(args, where); });
}

void check_gradient(const GradientOptions& o) {
  check_input(kOp, o.x);
  check_choice(kOp, "activation", o.activation, Activation::hardsigmoid);
  check_format(kOp, o.x, o.format, {});
  check_like(kOp, "dy", o.dy, o.x);
  check_bits(kOp, "inside", o.inside, o.x.sym_numel());
}

template <class Device>
Tensor gradient(const GradientOptions& o) {
  Device::require(kOp, o.x);
  check_gradient(o);
  Tensor dy = o.dy.contiguous(o.format), dx = at::empty_like(dy);
  write_gradient<Device>(o, dy, dx);
  return dx;
}

Tensor gradient_meta(const GradientOptions& o) {
  check_gradient(o);
  return at::empty_like(o.x, o.x.options(), o.format);
}

std::tuple<Tensor, Tensor> act_fake_quant(const ForwardOptions& options) {
  static auto op = find_op<decltype(forward_meta)>("bitpare::_act_fake_quant");
  return call(op, options);
}

// The saved bits determine the gradient, which is the same for x and other.
struct Masked : torch::autograd::Function<Masked> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& x, const OptionalTensor& other,
                        const ForwardOptions& o) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [y, inside] = act_fake_quant(o);
    context->save_for_backward({inside});
    context->saved_data["format"] = static_cast<int64_t>(o.format);
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
            saved["needs_other"].toBool() ? dx : Tensor(), Tensor()};
  }
};

// The gradient depends on x, so x is saved with the bits.
struct Shaped : torch::autograd::Function<Shaped> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& x, const ForwardOptions& o) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [y, inside] = act_fake_quant(o);
    context->save_for_backward({x, inside});
    context->saved_data["activation"] = o.activation;
    context->saved_data["format"] = static_cast<int64_t>(o.format);
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    static auto op = find_op<decltype(gradient_meta)>("bitpare::_act_fake_quant_gradient");
    auto tensors = context->get_saved_variables();
    BelowAutogradUnlessRecording below;
    auto& saved = context->saved_data;
    GradientOptions options = {
        .dy = dy[0],
        .x = tensors[0],
        .inside = tensors[1],
        .activation = saved["activation"].toInt(),
        .format = static_cast<at::MemoryFormat>(saved["format"].toInt()),
    };
    if (!may_overwrite(dy[0], options.format)) return {call(op, options), Tensor()};
    RECORD_FUNCTION("bitpare::_act_fake_quant_gradient in place", {});
    write_gradient<Cpu>(options, dy[0], dy[0]);
    return {dy[0], Tensor()};
  }
};

ForwardOptions parsed(const PublicOptions& o, bool save_inside) {
  check_input(kOp, o.x);
  return {
      .x = o.x,
      .other = o.other,
      .scale = o.scale,
      .zero_point = o.zero_point,
      .control = o.control,
      .pending = o.pending,
      .activation = parse_name(kOp, "activation", o.activation,
                               {"none", "relu", "relu6", "hardswish", "hardsigmoid"}),
      .save_inside = save_inside,
      .format = o.x.suggest_memory_format(),
  };
}

Tensor without_gradient(const PublicOptions& o) {
  return std::get<0>(act_fake_quant(parsed(o, false)));
}

Tensor autograd(const PublicOptions& o) {
  if (o.pending) bump_version(*o.pending);
  if (!needs_gradient(o.x) && !(o.other && needs_gradient(*o.other))) {
    at::AutoDispatchBelowADInplaceOrView below;
    return without_gradient(o);
  }
  ForwardOptions options = parsed(o, true);
  check_other(options);  // before Shaped, which gives `other` no gradient
  bool masked = is_mask(static_cast<Activation>(options.activation));
  return masked ? Masked::apply(o.x, o.other, options) : Shaped::apply(o.x, options);
}

// Runs where autograd() did not, as in inference mode.
void note_written(const ForwardOptions& o) {
  if (o.pending) bump_version(*o.pending);
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
  writes<forward_meta, note_written>(m, "_act_fake_quant");
  kernels(m, "_act_fake_quant_gradient", gradient<Cpu>, gradient<Cuda>, gradient_meta);
  no_derivative(m, "_act_fake_quant_gradient");
}

}  // namespace bitpare::ops
