#include "kernels/bn_act_fake_quant.h"

#include <functional>

#include "ops/control.h"
#include "ops/overwrite.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "bn_act_fake_quant";

using Results = std::tuple<Tensor, Tensor, Tensor>;
using ForwardSignature = Results(const Tensor& x, const OptionalTensor& weight,
                                 const OptionalTensor& bias, const Tensor& running_mean,
                                 const Tensor& running_var,
                                 const OptionalTensor& num_batches_tracked, const Tensor& scale,
                                 const OptionalTensor& zero_point, const Tensor& control,
                                 const OptionalTensor& pending, int64_t activation, bool training,
                                 double momentum, double eps, bool save_inside,
                                 at::MemoryFormat memory_format);
using GradientSignature = Results(const Tensor& dy, const Tensor& x, const OptionalTensor& weight,
                                  const Tensor& inside, const Tensor& statistics,
                                  int64_t activation, at::MemoryFormat memory_format);

template <class... Args>
Results call_forward(const Args&... args) {
  static auto op = find_op<ForwardSignature>("bitpare::_bn_act_fake_quant");
  return op.call(args...);
}

// One channel is one row, whatever dimensions it has.
ReduceLayout layout_in(const Tensor& x, at::MemoryFormat format) {
  ReduceLayout l = layout_of(x, {1, std::nullopt}, format);
  return l.channels == 1 ? ReduceLayout{1, 1, l.outer * l.inner} : l;
}

Tensor new_statistics(const Tensor& x) {
  auto options = x.options().dtype(at::kFloat).memory_format(std::nullopt);
  return at::empty_symint({layout::bn_statistics_floats(x.sym_size(1))}, options);
}

const float* floats_of(const OptionalTensor& t) { return t ? t->const_data_ptr<float>() : nullptr; }

OptionalTensor dense(const OptionalTensor& t) {
  return t ? OptionalTensor(t->contiguous()) : std::nullopt;
}

void check(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
           const Tensor& running_mean, const Tensor& running_var,
           const OptionalTensor& num_batches_tracked, const Tensor& scale,
           const OptionalTensor& zero_point, const Tensor& control, const OptionalTensor& pending,
           int64_t activation, bool training, at::MemoryFormat format) {
  check_input(kOp, x);
  TORCH_CHECK(x.dim() >= 2, kOp, ": x must have at least 2 dimensions, got shape ", x.sym_sizes());
  c10::SymInt c = x.sym_size(1);
  for (auto [name, t] : {std::pair("weight", &weight), std::pair("bias", &bias)}) {
    if (!*t) continue;
    TORCH_CHECK((*t)->scalar_type() == at::kFloat, kOp, ": ", name, " must be float32, got ",
                (*t)->scalar_type());
    check_per_channel(kOp, name, x, **t, {1, std::nullopt});
  }
  check_written(kOp, "running_mean", running_mean, at::kFloat, c);
  check_written(kOp, "running_var", running_var, at::kFloat, c);
  if (num_batches_tracked) {
    check_written(kOp, "num_batches_tracked", *num_batches_tracked, at::kLong, 1);
  }
  check_state(kOp, x, scale, zero_point, control, pending);
  TORCH_CHECK(!training || x.sym_numel() != c || c == 0, kOp,
              ": x must have more than 1 value per channel in training, got shape ", x.sym_sizes());
  check_choice(kOp, "activation", activation, Activation::hardswish);
  check_format(kOp, x, format, {});
}

template <class Device>
Results forward(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                const Tensor& running_mean, const Tensor& running_var,
                const OptionalTensor& num_batches_tracked, const Tensor& scale,
                const OptionalTensor& zero_point, const Tensor& control,
                const OptionalTensor& pending, int64_t activation, bool training, double momentum,
                double eps, bool save_inside, at::MemoryFormat format) {
  Device::require(kOp, x);
  check(x, weight, bias, running_mean, running_var, num_batches_tracked, scale, zero_point, control,
        pending, activation, training, format);
  Tensor source = x.contiguous(format), y = at::empty_like(source);
  Tensor inside = new_bits(source, save_inside), statistics = new_statistics(x);
  if (x.numel() == 0) return {y, inside, statistics.zero_()};
  OptionalTensor dense_weight = dense(weight), dense_bias = dense(bias);
  Tensor dense_control = control.contiguous();
  auto q = quantizer_in<Device>(kOp, scale, zero_point, dense_control);
  BnActFakeQuant args = {};
  args.layout = layout_in(x, format);
  Tensor scratch = at::empty({layout::bn_floats(args.layout)}, statistics.options());
  args.x = source.const_data_ptr();
  args.y = y.data_ptr();
  args.inside = save_inside ? static_cast<uint64_t*>(inside.data_ptr()) : nullptr;
  args.dtype = dtype_of(kOp, x);
  args.weight = floats_of(dense_weight);
  args.bias = floats_of(dense_bias);
  args.running_mean = running_mean.data_ptr<float>();
  args.running_var = running_var.data_ptr<float>();
  if (num_batches_tracked) args.num_batches_tracked = num_batches_tracked->data_ptr<int64_t>();
  args.quantizer = q.quantizer;
  args.control = control_of(dense_control);
  args.pending = pending ? pending->data_ptr<float>() : nullptr;
  args.statistics = statistics.data_ptr<float>();
  args.scratch = scratch.data_ptr<float>();
  args.activation = static_cast<Activation>(activation);
  args.training = training;
  args.momentum = momentum;
  args.eps = eps;
  Device::run(x, [&](const auto& where) { bitpare::bn_act_fake_quant(args, where); });
  return {y, inside, statistics};
}

Results forward_meta(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                     const Tensor& running_mean, const Tensor& running_var,
                     const OptionalTensor& num_batches_tracked, const Tensor& scale,
                     const OptionalTensor& zero_point, const Tensor& control,
                     const OptionalTensor& pending, int64_t activation, bool training, double,
                     double, bool save_inside, at::MemoryFormat format) {
  check(x, weight, bias, running_mean, running_var, num_batches_tracked, scale, zero_point, control,
        pending, activation, training, format);
  return {at::empty_like(x, x.options(), format), new_bits(x, save_inside), new_statistics(x)};
}

Results bump_versions(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                      const Tensor& running_mean, const Tensor& running_var,
                      const OptionalTensor& num_batches_tracked, const Tensor& scale,
                      const OptionalTensor& zero_point, const Tensor& control,
                      const OptionalTensor& pending, int64_t activation, bool training,
                      double momentum, double eps, bool save_inside, at::MemoryFormat format) {
  at::AutoDispatchBelowADInplaceOrView below;
  auto results = call_forward(x, weight, bias, running_mean, running_var, num_batches_tracked,
                              scale, zero_point, control, pending, activation, training, momentum,
                              eps, save_inside, format);
  if (pending) bump_version(*pending);
  if (!training) return results;
  bump_version(running_mean);
  bump_version(running_var);
  if (num_batches_tracked) bump_version(*num_batches_tracked);
  return results;
}

Tensor new_channels(const Tensor& x) {
  auto options = x.options().dtype(at::kFloat).memory_format(std::nullopt);
  return at::empty_symint({x.sym_size(1)}, options);
}

// dy, dx: dense in the layout of `format`; they may be the same.
template <class Device>
Results write_gradient(const Tensor& dy, const Tensor& x, const OptionalTensor& weight,
                       const Tensor& inside, const Tensor& statistics, int64_t activation,
                       at::MemoryFormat format, const Tensor& dx) {
  Tensor source = x.contiguous(format), dweight = new_channels(x), dbias = new_channels(x);
  if (x.numel() == 0) return {dx, dweight.zero_(), dbias.zero_()};
  OptionalTensor dense_weight = dense(weight);
  Array<uint64_t> bits(inside);
  Array<float> moments(statistics);
  ReduceLayout layout = layout_in(x, format);
  Tensor scratch = at::empty({layout::bn_floats(layout)}, statistics.options());
  BnActFakeQuantGradient args = {dy.const_data_ptr(),
                                 source.const_data_ptr(),
                                 dx.data_ptr(),
                                 bits.data(),
                                 dtype_of(kOp, x),
                                 layout,
                                 floats_of(dense_weight),
                                 moments.data(),
                                 dweight.data_ptr<float>(),
                                 dbias.data_ptr<float>(),
                                 scratch.data_ptr<float>(),
                                 static_cast<Activation>(activation)};
  Device::run(x, [&](const auto& where) { bn_act_fake_quant_gradient(args, where); });
  return {dx, dweight, dbias};
}

void check_gradient(const Tensor& dy, const Tensor& x, const OptionalTensor& weight,
                    const Tensor& inside, const Tensor& statistics, int64_t activation,
                    at::MemoryFormat format) {
  check_input(kOp, x);
  TORCH_CHECK(x.dim() >= 2, kOp, ": x must have at least 2 dimensions, got shape ", x.sym_sizes());
  check_like(kOp, "dy", dy, x);
  check_bits(kOp, "inside", inside, x.sym_numel());
  if (weight) {
    TORCH_CHECK(weight->scalar_type() == at::kFloat, kOp, ": weight must be float32, got ",
                weight->scalar_type());
    check_per_channel(kOp, "weight", x, *weight, {1, std::nullopt});
  }
  c10::SymInt moments = layout::bn_statistics_floats(x.sym_size(1));
  TORCH_CHECK(statistics.scalar_type() == at::kFloat && statistics.sym_numel() == moments, kOp,
              ": statistics must have ", moments, " elements of float32, got ",
              statistics.sym_numel(), " of ", statistics.scalar_type());
  check_choice(kOp, "activation", activation, Activation::hardswish);
  check_format(kOp, x, format, {});
}

template <class Device>
Results gradient(const Tensor& dy, const Tensor& x, const OptionalTensor& weight,
                 const Tensor& inside, const Tensor& statistics, int64_t activation,
                 at::MemoryFormat format) {
  Device::require(kOp, x);
  check_gradient(dy, x, weight, inside, statistics, activation, format);
  Tensor source = dy.contiguous(format);
  return write_gradient<Device>(source, x, weight, inside, statistics, activation, format,
                                at::empty_like(source));
}

Results gradient_meta(const Tensor& dy, const Tensor& x, const OptionalTensor& weight,
                      const Tensor& inside, const Tensor& statistics, int64_t activation,
                      at::MemoryFormat format) {
  check_gradient(dy, x, weight, inside, statistics, activation, format);
  return {at::empty_like(x, x.options(), format), new_channels(x), new_channels(x)};
}

struct Differentiable : torch::autograd::Function<Differentiable> {
  static constexpr bool is_traceable = true;

  // run() -> the results of _bn_act_fake_quant, below autograd.
  static Tensor forward(AutogradContext* context, const Tensor& x, const OptionalTensor& weight,
                        const OptionalTensor& bias, Activation activation, at::MemoryFormat format,
                        const std::function<Results()>& run) {
    at::AutoDispatchBelowAutograd below;
    auto [y, inside, statistics] = run();
    context->save_for_backward({x, weight.value_or(Tensor()), inside, statistics});
    context->saved_data["format"] = static_cast<int64_t>(format);
    context->saved_data["activation"] = static_cast<int64_t>(activation);
    context->saved_data["bias"] = bias.has_value();
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    static auto op = find_op<GradientSignature>("bitpare::_bn_act_fake_quant_gradient");
    auto saved = context->get_saved_variables();
    BelowAutogradUnlessRecording below;
    OptionalTensor weight;
    if (saved[1].defined()) weight = saved[1];
    auto format = static_cast<at::MemoryFormat>(context->saved_data["format"].toInt());
    int64_t activation = context->saved_data["activation"].toInt();
    auto run = [&]() -> Results {
      if (!may_overwrite(dy[0], format))
        return op.call(dy[0], saved[0], weight, saved[2], saved[3], activation, format);
      RECORD_FUNCTION("bitpare::_bn_act_fake_quant_gradient in place", {});
      return write_gradient<Cpu>(dy[0], saved[0], weight, saved[2], saved[3], activation, format,
                                 dy[0]);
    };
    auto [dx, dweight, dbias] = run();
    bool bias = context->saved_data["bias"].toBool();
    return {dx, weight ? dweight : Tensor(), bias ? dbias : Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

template <bool kAutograd>
Tensor public_op(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                 const Tensor& running_mean, const Tensor& running_var,
                 const OptionalTensor& num_batches_tracked, const Tensor& scale,
                 const OptionalTensor& zero_point, const Tensor& control,
                 const OptionalTensor& pending, c10::string_view activation, bool training,
                 double momentum, double eps) {
  check_input(kOp, x);
  auto act = static_cast<Activation>(
      parse_name(kOp, "activation", activation, {"none", "relu", "relu6", "hardswish"}));
  at::MemoryFormat format = format_of(x, {});
  bool differentiable = kAutograd && (needs_gradient(x) || (weight && needs_gradient(*weight)) ||
                                      (bias && needs_gradient(*bias)));
  auto run = [&] {
    return call_forward(x, weight, bias, running_mean, running_var, num_batches_tracked, scale,
                        zero_point, control, pending, static_cast<int64_t>(act), training, momentum,
                        eps, differentiable, format);
  };
  if (differentiable) return Differentiable::apply(x, weight, bias, act, format, run);
  at::AutoDispatchBelowAutograd below;
  return std::get<0>(run());
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
  kernels(m, "_bn_act_fake_quant_gradient", gradient<Cpu>, gradient<Cuda>, gradient_meta);
  no_derivative(m, "_bn_act_fake_quant_gradient");
}
TORCH_LIBRARY_IMPL(bitpare, ADInplaceOrView, m) { m.impl("_bn_act_fake_quant", bump_versions); }

}  // namespace bitpare::ops
