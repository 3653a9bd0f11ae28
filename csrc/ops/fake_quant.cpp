#include "ops/fake_quant.h"

#include <cmath>

#include "kernels/fake_quant.h"
#include "ops/straight_through.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "fake_quant";

// The arguments of `_fake_quant_gradient`. rounding: a Rounding; estimator: an Estimator.
struct GradientOptions {
  const Tensor& dy;
  const Tensor& x;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  int64_t quant_min, quant_max;
  Granularity granularity;
  int64_t rounding;
  const OptionalTensor& rng;
  int64_t estimator;
  double delta;
  at::MemoryFormat format;

  auto fields() const {
    return std::tie(dy, x, scale, zero_point, quant_min, quant_max, granularity.axis,
                    granularity.group, rounding, rng, estimator, delta, format);
  }
};

// The arguments of the public op.
struct PublicOptions {
  const Tensor& x;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  int64_t quant_min, quant_max;
  Granularity granularity;
  c10::string_view rounding, estimator;
  double delta;
  const OptionalTensor& rng;

  auto fields() const {
    return std::tie(x, scale, zero_point, quant_min, quant_max, granularity.axis, granularity.group,
                    rounding, estimator, delta, rng);
  }
};

template <class Options>
void check_rounded(const char* op, const Options& o) {
  check_on_grid(op, o);
  check_choice(op, "rounding", o.rounding, Rounding::stochastic);
  check_rng(op, static_cast<Rounding>(o.rounding), o.rng);
}

// Returns the op that the user called.
const char* name_of(const FakeQuantOptions& o) { return o.floored ? "fake_quant_lsq" : kOp; }

template <class Device>
std::tuple<Tensor, Tensor> forward(const FakeQuantOptions& o) {
  const char* op = name_of(o);
  Device::require(op, o.x);
  check_rounded(op, o);
  Tensor source = o.x.contiguous(o.format), y = at::empty_like(source);
  Tensor inside = new_bits(source, o.save_inside);
  if (o.x.numel() == 0) return {y, inside};
  auto q = quantizer_on_grid<Device>(op, o, layout_of(o.x, o.granularity, o.format), o.floored);
  Array<int64_t> random(o.rng);
  FakeQuant args = {
      .x = source.const_data_ptr(),
      .y = y.data_ptr(),
      .inside = o.save_inside ? static_cast<uint64_t*>(inside.data_ptr()) : nullptr,
      .n = o.x.numel(),
      .dtype = dtype_of(op, o.x),
      .quantizer = q.quantizer,
      .rounding = static_cast<Rounding>(o.rounding),
      .rng = random.data(),
  };
  Device::run(o.x, [&](const auto& where) { bitpare::fake_quant(args, where); });
  return {y, inside};
}

std::tuple<Tensor, Tensor> forward_meta(const FakeQuantOptions& o) {
  check_rounded(name_of(o), o);
  return {at::empty_like(o.x, o.x.options(), o.format), new_bits(o.x, o.save_inside)};
}

void check_gradient(const GradientOptions& o) {
  check_rounded(kOp, o);
  check_like(kOp, "dy", o.dy, o.x);
  check_choice(kOp, "estimator", o.estimator, Estimator::tanh);
}

template <class Device>
Tensor gradient(const GradientOptions& o) {
  Device::require(kOp, o.x);
  check_gradient(o);
  Tensor dy = o.dy.contiguous(o.format), source = o.x.contiguous(o.format);
  Tensor dx = at::empty_like(source);
  if (o.x.numel() == 0) return dx;
  auto q = quantizer_on_grid<Device>(kOp, o, layout_of(o.x, o.granularity, o.format));
  Array<int64_t> random(o.rng);
  FakeQuantGradient args = {
      .dy = dy.const_data_ptr(),
      .x = source.const_data_ptr(),
      .dx = dx.data_ptr(),
      .n = o.x.numel(),
      .dtype = dtype_of(kOp, o.x),
      .quantizer = q.quantizer,
      .rounding = static_cast<Rounding>(o.rounding),
      .rng = random.data(),
      .estimator = static_cast<Estimator>(o.estimator),
      .delta = static_cast<float>(o.delta),
      .peak = static_cast<float>(o.delta / 2 / std::tanh(o.delta / 2)),
  };
  Device::run(o.x, [&](const auto& where) { fake_quant_gradient(args, where); });
  return dx;
}

Tensor gradient_meta(const GradientOptions& o) {
  check_gradient(o);
  return at::empty_like(o.x, o.x.options(), o.format);
}

// The gradient passes unchanged.
struct Identity : torch::autograd::Function<Identity> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext*, const Tensor&, const FakeQuantOptions& o) {
    at::AutoDispatchBelowADInplaceOrView below;
    return std::get<0>(fake_quant(o));
  }

  static variable_list backward(AutogradContext*, const variable_list& dy) {
    return {dy[0], Tensor()};
  }
};

// The gradient depends on where x lies in its step, so x is saved.
struct Shaped : torch::autograd::Function<Shaped> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& x, const FakeQuantOptions& o,
                        Estimator estimator, double delta) {
    at::AutoDispatchBelowADInplaceOrView below;
    // rng moves on before the backward pass, which has to round as this pass did.
    Tensor rng = o.rng.value_or(Tensor());
    if (rng.defined()) rng = rng.clone();
    context->save_for_backward({x, o.scale, o.zero_point.value_or(Tensor()), rng});
    auto& saved = context->saved_data;
    saved["quant_min"] = o.quant_min;
    saved["quant_max"] = o.quant_max;
    saved["axis"] = o.granularity.axis;
    saved["group"] = o.granularity.group;
    saved["rounding"] = o.rounding;
    saved["estimator"] = static_cast<int64_t>(estimator);
    saved["delta"] = delta;
    saved["format"] = static_cast<int64_t>(o.format);
    return std::get<0>(fake_quant(o));
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    static auto op = find_op<decltype(gradient_meta)>("bitpare::_fake_quant_gradient");
    auto tensors = context->get_saved_variables();
    BelowAutogradUnlessRecording below;
    auto& saved = context->saved_data;
    GradientOptions options = {
        .dy = dy[0],
        .x = tensors[0],
        .scale = tensors[1],
        .zero_point = if_defined(tensors[2]),
        .quant_min = saved["quant_min"].toInt(),
        .quant_max = saved["quant_max"].toInt(),
        .granularity = {saved["axis"].toOptional<int64_t>(), saved["group"].toOptional<int64_t>()},
        .rounding = saved["rounding"].toInt(),
        .rng = if_defined(tensors[3]),
        .estimator = saved["estimator"].toInt(),
        .delta = saved["delta"].toDouble(),
        .format = static_cast<at::MemoryFormat>(saved["format"].toInt()),
    };
    return {call(op, options), Tensor(), Tensor(), Tensor()};
  }
};

Estimator parse_estimator(c10::string_view name, double delta) {
  auto estimator = static_cast<Estimator>(
      parse_name(kOp, "estimator", name, {"ste", "identity", "ewgs", "tanh"}));
  TORCH_CHECK(estimator != Estimator::tanh || (delta > 0 && std::isfinite(delta)), kOp,
              ": delta must be positive with estimator='tanh' (the sharpness of its steps), got ",
              delta);
  TORCH_CHECK(std::isfinite(delta) && delta >= 0, kOp, ": delta must be 0 or more, got ", delta);
  return estimator;
}

// Tensors and numbers are checked by `_fake_quant`, which every path calls.
FakeQuantOptions parsed(const PublicOptions& o, bool save_inside) {
  check_input(kOp, o.x);
  return {
      .x = o.x,
      .scale = o.scale,
      .zero_point = o.zero_point,
      .quant_min = o.quant_min,
      .quant_max = o.quant_max,
      .granularity = o.granularity,
      .rounding = static_cast<int64_t>(parse_rounding(kOp, o.rounding)),
      .rng = o.rng,
      .floored = false,
      .save_inside = save_inside,
      .format = format_of(o.x, o.granularity),
  };
}

Tensor without_gradient(const PublicOptions& o) {
  FakeQuantOptions options = parsed(o, false);
  parse_estimator(o.estimator, o.delta);
  return std::get<0>(fake_quant(options)).contiguous(o.x.suggest_memory_format());
}

Tensor autograd(const PublicOptions& o) {
  if (!needs_gradient(o.x)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return without_gradient(o);
  }
  Estimator estimator = parse_estimator(o.estimator, o.delta);
  FakeQuantOptions options = parsed(o, estimator == Estimator::ste);
  Tensor y;
  if (estimator == Estimator::ste) {
    y = with_straight_through(o.x, options.format, [&] { return fake_quant(options); });
  } else if (estimator == Estimator::identity) {
    y = Identity::apply(o.x, options);
  } else {
    y = Shaped::apply(o.x, options, estimator, o.delta);
  }
  return y.contiguous(o.x.suggest_memory_format());
}

}  // namespace

std::tuple<Tensor, Tensor> fake_quant(const FakeQuantOptions& options) {
  static auto op = find_op<decltype(forward_meta)>("bitpare::_fake_quant");
  return call(op, options);
}

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "fake_quant(Tensor x, Tensor scale, Tensor? zero_point=None, *, int quant_min, "
      "int quant_max, int? axis=None, int? group=None, str rounding='nearest', "
      "str estimator='ste', float delta=0.0, Tensor? rng=None) -> Tensor",
      tags());
  m.def(
      "_fake_quant(Tensor x, Tensor scale, Tensor? zero_point, int quant_min, int quant_max, "
      "int? axis, int? group, int rounding, Tensor? rng, bool floored, bool save_inside, "
      "MemoryFormat memory_format) -> (Tensor, Tensor)",
      tags());
  m.def(
      "_fake_quant_gradient(Tensor dy, Tensor x, Tensor scale, Tensor? zero_point, "
      "int quant_min, int quant_max, int? axis, int? group, int rounding, Tensor? rng, "
      "int estimator, float delta, MemoryFormat memory_format) -> Tensor",
      tags());
  composite(m, "fake_quant", without_gradient, autograd);
  kernels(m, "_fake_quant", forward<Cpu>, forward<Cuda>, forward_meta);
  no_derivative(m, "_fake_quant");
  kernels(m, "_fake_quant_gradient", gradient<Cpu>, gradient<Cuda>, gradient_meta);
  no_derivative(m, "_fake_quant_gradient");
}

}  // namespace bitpare::ops
