#include "kernels/bn_act_fake_quant.h"

#include "ops/control.h"
#include "ops/overwrite.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "bn_act_fake_quant";

using Results = std::tuple<Tensor, Tensor, Tensor>;

// The arguments of `_bn_act_fake_quant`. activation: an Activation.
struct ForwardOptions {
  const Tensor& x;
  const OptionalTensor& weight;
  const OptionalTensor& bias;
  const Tensor& running_mean;
  const Tensor& running_var;
  const OptionalTensor& num_batches_tracked;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  const Tensor& control;
  const OptionalTensor& pending;
  int64_t activation;
  bool training;
  double momentum, eps;
  bool save_inside;
  at::MemoryFormat format;

  auto fields() const {
    return std::tie(x, weight, bias, running_mean, running_var, num_batches_tracked, scale,
                    zero_point, control, pending, activation, training, momentum, eps, save_inside,
                    format);
  }
};

// The arguments of `_bn_act_fake_quant_gradient`.
struct GradientOptions {
  const Tensor& dy;
  const Tensor& x;
  const OptionalTensor& weight;
  const Tensor& inside;
  const Tensor& statistics;
  int64_t activation;
  at::MemoryFormat format;

  auto fields() const { return std::tie(dy, x, weight, inside, statistics, activation, format); }
};

// The arguments of the public op.
struct PublicOptions {
  const Tensor& x;
  const OptionalTensor& weight;
  const OptionalTensor& bias;
  const Tensor& running_mean;
  const Tensor& running_var;
  const OptionalTensor& num_batches_tracked;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  const Tensor& control;
  const OptionalTensor& pending;
  c10::string_view activation;
  bool training;
  double momentum, eps;

  auto fields() const {
    return std::tie(x, weight, bias, running_mean, running_var, num_batches_tracked, scale,
                    zero_point, control, pending, activation, training, momentum, eps);
  }
};

// One channel is one row, whatever dimensions it has.
ReduceLayout layout_in(const Tensor& x, at::MemoryFormat format) {
  ReduceLayout l = layout_of(x, {1, std::nullopt}, format);
  return l.channels == 1 ? ReduceLayout{1, 1, l.outer * l.inner} : l;
}

Tensor new_statistics(const Tensor& x) {
  auto options = x.options().dtype(at::kFloat).memory_format(std::nullopt);
  return at::empty_symint({layout::bn_statistics_floats(x.sym_size(1))}, options);
}

void check_affine(const Tensor& x, const char* name, const OptionalTensor& values) {
  if (!values) return;
  TORCH_CHECK(values->scalar_type() == at::kFloat, kOp, ": ", name, " must be float32, got ",
              values->scalar_type());
  check_per_channel(kOp, name, x, *values, {1, std::nullopt});
}

// Checks what the forward and the backward op share.
template <class Options>
void check_normalized(const Options& o) {
  check_input(kOp, o.x);
  TORCH_CHECK(o.x.dim() >= 2, kOp, ": x must have at least 2 dimensions, got shape ",
              o.x.sym_sizes());
  check_affine(o.x, "weight", o.weight);
  check_choice(kOp, "activation", o.activation, Activation::hardswish);
  check_format(kOp, o.x, o.format, {});
}

void check(const ForwardOptions& o) {
  check_normalized(o);
  c10::SymInt c = o.x.sym_size(1);
  check_affine(o.x, "bias", o.bias);
  check_written(kOp, "running_mean", o.running_mean, at::kFloat, c);
  check_written(kOp, "running_var", o.running_var, at::kFloat, c);
  if (o.num_batches_tracked) {
    check_written(kOp, "num_batches_tracked", *o.num_batches_tracked, at::kLong, 1);
  }
  check_state(kOp, o);
  TORCH_CHECK(!o.training || o.x.sym_numel() != c || c == 0, kOp,
              ": x must have more than 1 value per channel in training, got shape ",
              o.x.sym_sizes());
}

template <class Device>
Results forward(const ForwardOptions& o) {
  Device::require(kOp, o.x);
  check(o);
  Tensor source = o.x.contiguous(o.format), y = at::empty_like(source);
  Tensor inside = new_bits(source, o.save_inside), statistics = new_statistics(o.x);
  if (o.x.numel() == 0) return {y, inside, statistics.zero_()};
  Array<float> weight(o.weight), bias(o.bias);
  Tensor control = o.control.contiguous();
  auto q = quantizer_in<Device>(kOp, o.scale, o.zero_point, control);
  ReduceLayout layout = layout_in(o.x, o.format);
  Tensor scratch = at::empty({layout::bn_floats(layout)}, statistics.options());
  BnActFakeQuant args = {
      .x = source.const_data_ptr(),
      .y = y.data_ptr(),
      .inside = o.save_inside ? static_cast<uint64_t*>(inside.data_ptr()) : nullptr,
      .dtype = dtype_of(kOp, o.x),
      .layout = layout,
      .weight = weight.data(),
      .bias = bias.data(),
      .running_mean = o.running_mean.data_ptr<float>(),
      .running_var = o.running_var.data_ptr<float>(),
      .num_batches_tracked =
          o.num_batches_tracked ? o.num_batches_tracked->data_ptr<int64_t>() : nullptr,
      .quantizer = q.quantizer,
      .control = control_of(control),
      .pending = o.pending ? o.pending->data_ptr<float>() : nullptr,
      .statistics = statistics.data_ptr<float>(),
      .scratch = scratch.data_ptr<float>(),
      .activation = static_cast<Activation>(o.activation),
      .training = o.training,
      .momentum = o.momentum,
      .eps = o.eps,
  };
  Device::run(o.x, [&](const auto& where) { bitpare::bn_act_fake_quant(args, where); });
  return {y, inside, statistics};
}

Results forward_meta(const ForwardOptions& o) {
  check(o);
  return {at::empty_like(o.x, o.x.options(), o.format), new_bits(o.x, o.save_inside),
          new_statistics(o.x)};
}

void note_written(const ForwardOptions& o) {
  if (o.pending) bump_version(*o.pending);
  if (!o.training) return;
  bump_version(o.running_mean);
  bump_version(o.running_var);
  if (o.num_batches_tracked) bump_version(*o.num_batches_tracked);
}

Tensor new_channels(const Tensor& x) {
  auto options = x.options().dtype(at::kFloat).memory_format(std::nullopt);
  return at::empty_symint({x.sym_size(1)}, options);
}

// dy, dx: dense in the layout of o.format; they may be the same.
template <class Device>
Results write_gradient(const GradientOptions& o, const Tensor& dy, const Tensor& dx) {
  Tensor source = o.x.contiguous(o.format);
  Tensor dweight = new_channels(o.x), dbias = new_channels(o.x);
  if (o.x.numel() == 0) return {dx, dweight.zero_(), dbias.zero_()};
  Array<float> weight(o.weight), statistics(o.statistics);
  Array<uint64_t> bits(o.inside);
  ReduceLayout layout = layout_in(o.x, o.format);
  Tensor scratch = at::empty({layout::bn_floats(layout)}, o.statistics.options());
  BnActFakeQuantGradient args = {
      .dy = dy.const_data_ptr(),
      .x = source.const_data_ptr(),
      .dx = dx.data_ptr(),
      .inside = bits.data(),
      .dtype = dtype_of(kOp, o.x),
      .layout = layout,
      .weight = weight.data(),
      .statistics = statistics.data(),
      .weight_gradient = dweight.data_ptr<float>(),
      .bias_gradient = dbias.data_ptr<float>(),
      .scratch = scratch.data_ptr<float>(),
      .activation = static_cast<Activation>(o.activation),
  };
  Device::run(o.x, [&](const auto& where) { bn_act_fake_quant_gradient(args, where); });
  return {dx, dweight, dbias};
}

void check_gradient(const GradientOptions& o) {
  check_normalized(o);
  check_like(kOp, "dy", o.dy, o.x);
  check_bits(kOp, "inside", o.inside, o.x.sym_numel());
  c10::SymInt floats = layout::bn_statistics_floats(o.x.sym_size(1));
  TORCH_CHECK(o.statistics.scalar_type() == at::kFloat && o.statistics.sym_numel() == floats, kOp,
              ": statistics must have ", floats, " elements of float32, got ",
              o.statistics.sym_numel(), " of ", o.statistics.scalar_type());
}

template <class Device>
Results gradient(const GradientOptions& o) {
  Device::require(kOp, o.x);
  check_gradient(o);
  Tensor dy = o.dy.contiguous(o.format);
  return write_gradient<Device>(o, dy, at::empty_like(dy));
}

Results gradient_meta(const GradientOptions& o) {
  check_gradient(o);
  return {at::empty_like(o.x, o.x.options(), o.format), new_channels(o.x), new_channels(o.x)};
}

Results bn_act_fake_quant(const ForwardOptions& options) {
  static auto op = find_op<decltype(forward_meta)>("bitpare::_bn_act_fake_quant");
  return call(op, options);
}

struct Differentiable : torch::autograd::Function<Differentiable> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& x, const OptionalTensor& weight,
                        const OptionalTensor& bias, const ForwardOptions& o) {
    at::AutoDispatchBelowAutograd below;
    auto [y, inside, statistics] = bn_act_fake_quant(o);
    context->save_for_backward({x, weight.value_or(Tensor()), inside, statistics});
    context->saved_data["format"] = static_cast<int64_t>(o.format);
    context->saved_data["activation"] = o.activation;
    context->saved_data["bias"] = bias.has_value();
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    static auto op = find_op<decltype(gradient_meta)>("bitpare::_bn_act_fake_quant_gradient");
    auto tensors = context->get_saved_variables();
    BelowAutogradUnlessRecording below;
    auto& saved = context->saved_data;
    GradientOptions options = {
        .dy = dy[0],
        .x = tensors[0],
        .weight = if_defined(tensors[1]),
        .inside = tensors[2],
        .statistics = tensors[3],
        .activation = saved["activation"].toInt(),
        .format = static_cast<at::MemoryFormat>(saved["format"].toInt()),
    };
    auto run = [&]() -> Results {
      if (!may_overwrite(dy[0], options.format)) return call(op, options);
      RECORD_FUNCTION("bitpare::_bn_act_fake_quant_gradient in place", {});
      return write_gradient<Cpu>(options, dy[0], dy[0]);
    };
    auto [dx, dweight, dbias] = run();
    return {dx, options.weight ? dweight : Tensor(), saved["bias"].toBool() ? dbias : Tensor(),
            Tensor()};
  }
};

template <bool kAutograd>
Tensor public_op(const PublicOptions& o) {
  check_input(kOp, o.x);
  auto needed = [](const OptionalTensor& t) { return t && needs_gradient(*t); };
  bool differentiable = kAutograd && (needs_gradient(o.x) || needed(o.weight) || needed(o.bias));
  ForwardOptions options = {
      .x = o.x,
      .weight = o.weight,
      .bias = o.bias,
      .running_mean = o.running_mean,
      .running_var = o.running_var,
      .num_batches_tracked = o.num_batches_tracked,
      .scale = o.scale,
      .zero_point = o.zero_point,
      .control = o.control,
      .pending = o.pending,
      .activation =
          parse_name(kOp, "activation", o.activation, {"none", "relu", "relu6", "hardswish"}),
      .training = o.training,
      .momentum = o.momentum,
      .eps = o.eps,
      .save_inside = differentiable,
      .format = format_of(o.x, {}),
  };
  if (differentiable) return Differentiable::apply(o.x, o.weight, o.bias, options);
  at::AutoDispatchBelowAutograd below;
  return std::get<0>(bn_act_fake_quant(options));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "bn_act_fake_quant(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!) running_mean, "
      "Tensor(b!) running_var, Tensor(c!)? num_batches_tracked, Tensor scale, Tensor? zero_point, "
      "Tensor control, Tensor(d!)? pending, *, str activation='none', bool training, "
      "float momentum=0.1, float eps=1e-5) -> Tensor",
      tags());
  m.def(
      "_bn_act_fake_quant(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!) running_mean, "
      "Tensor(b!) running_var, Tensor(c!)? num_batches_tracked, Tensor scale, Tensor? zero_point, "
      "Tensor control, Tensor(d!)? pending, int activation, bool training, float momentum, "
      "float eps, bool save_inside, MemoryFormat memory_format) -> (Tensor, Tensor, Tensor)",
      tags());
  m.def(
      "_bn_act_fake_quant_gradient(Tensor dy, Tensor x, Tensor? weight, Tensor inside, "
      "Tensor statistics, int activation, MemoryFormat memory_format) -> (Tensor, Tensor, Tensor)",
      tags());
  composite(m, "bn_act_fake_quant", public_op<false>, public_op<true>);
  kernels(m, "_bn_act_fake_quant", forward<Cpu>, forward<Cuda>, forward_meta);
  no_derivative(m, "_bn_act_fake_quant");
  writes<forward_meta, note_written>(m, "_bn_act_fake_quant");
  kernels(m, "_bn_act_fake_quant_gradient", gradient<Cpu>, gradient<Cuda>, gradient_meta);
  no_derivative(m, "_bn_act_fake_quant_gradient");
}

}  // namespace bitpare::ops
