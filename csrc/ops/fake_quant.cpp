#include "ops/fake_quant.h"

#include <cmath>

#include "kernels/fake_quant.h"
#include "ops/straight_through.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "fake_quant";

using ForwardSignature = std::tuple<Tensor, Tensor>(
    const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point, int64_t quant_min,
    int64_t quant_max, std::optional<int64_t> axis, std::optional<int64_t> group, int64_t rounding,
    const OptionalTensor& rng, bool floored, bool save_inside, at::MemoryFormat memory_format);

using GradientSignature = Tensor(const Tensor& dy, const Tensor& x, const Tensor& scale,
                                 const OptionalTensor& zero_point, int64_t quant_min,
                                 int64_t quant_max, std::optional<int64_t> axis,
                                 std::optional<int64_t> group, int64_t rounding,
                                 const OptionalTensor& rng, int64_t estimator, double delta,
                                 at::MemoryFormat memory_format);

// Checks the arguments of the private op, which fake_quant_lsq calls too; rounding: its number.
void check(const char* op, const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point,
           int64_t quant_min, int64_t quant_max, const Granularity& granularity, int64_t rounding,
           const OptionalTensor& rng, at::MemoryFormat format) {
  check_input(op, x);
  check_grid(op, quant_min, quant_max);
  check_granularity(op, x, granularity);
  check_scale(op, x, scale, granularity);
  check_zero_point(op, x, zero_point, granularity);
  check_choice(op, "rounding", rounding, Rounding::stochastic);
  check_rng(op, static_cast<Rounding>(rounding), rng);
  check_format(op, x, format, granularity);
}

template <class Device>
std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& scale,
                                   const OptionalTensor& zero_point, int64_t quant_min,
                                   int64_t quant_max, std::optional<int64_t> axis,
                                   std::optional<int64_t> group, int64_t rounding,
                                   const OptionalTensor& rng, bool floored, bool save_inside,
                                   at::MemoryFormat format) {
  const char* op = floored ? "fake_quant_lsq" : kOp;  // who else calls it
  Device::require(op, x);
  check(op, x, scale, zero_point, quant_min, quant_max, {axis, group}, rounding, rng, format);
  Tensor source = x.contiguous(format), y = at::empty_like(source);
  Tensor inside = new_bits(source, save_inside);
  if (x.numel() == 0) return {y, inside};
  auto q = quantizer_of(op, scale, zero_point, quant_min, quant_max,
                        layout_of(x, {axis, group}, format), floored, Device::kSeesValues);
  Array<int64_t> random(rng);
  FakeQuant args = {source.const_data_ptr(),
                    y.data_ptr(),
                    save_inside ? static_cast<uint64_t*>(inside.data_ptr()) : nullptr,
                    x.numel(),
                    dtype_of(op, x),
                    q.quantizer,
                    static_cast<Rounding>(rounding),
                    random.data()};
  Device::run(x, [&](const auto& where) { bitpare::fake_quant(args, where); });
  return {y, inside};
}

std::tuple<Tensor, Tensor> forward_meta(const Tensor& x, const Tensor& scale,
                                        const OptionalTensor& zero_point, int64_t quant_min,
                                        int64_t quant_max, std::optional<int64_t> axis,
                                        std::optional<int64_t> group, int64_t rounding,
                                        const OptionalTensor& rng, bool floored, bool save_inside,
                                        at::MemoryFormat format) {
  check(floored ? "fake_quant_lsq" : kOp, x, scale, zero_point, quant_min, quant_max, {axis, group},
        rounding, rng, format);
  return {at::empty_like(x, x.options(), format), new_bits(x, save_inside)};
}

void check_gradient(const Tensor& dy, const Tensor& x, const Tensor& scale,
                    const OptionalTensor& zero_point, int64_t quant_min, int64_t quant_max,
                    const Granularity& granularity, int64_t rounding, const OptionalTensor& rng,
                    int64_t estimator, at::MemoryFormat format) {
  check(kOp, x, scale, zero_point, quant_min, quant_max, granularity, rounding, rng, format);
  check_like(kOp, "dy", dy, x);
  check_choice(kOp, "estimator", estimator, Estimator::tanh);
}

template <class Device>
Tensor gradient(const Tensor& dy, const Tensor& x, const Tensor& scale,
                const OptionalTensor& zero_point, int64_t quant_min, int64_t quant_max,
                std::optional<int64_t> axis, std::optional<int64_t> group, int64_t rounding,
                const OptionalTensor& rng, int64_t estimator, double delta,
                at::MemoryFormat format) {
  Device::require(kOp, x);
  check_gradient(dy, x, scale, zero_point, quant_min, quant_max, {axis, group}, rounding, rng,
                 estimator, format);
  Tensor dy_source = dy.contiguous(format), source = x.contiguous(format);
  Tensor dx = at::empty_like(source);
  if (x.numel() == 0) return dx;
  auto q = quantizer_of(kOp, scale, zero_point, quant_min, quant_max,
                        layout_of(x, {axis, group}, format), false, Device::kSeesValues);
  Array<int64_t> random(rng);
  FakeQuantGradient args = {dy_source.const_data_ptr(),
                            source.const_data_ptr(),
                            dx.data_ptr(),
                            x.numel(),
                            dtype_of(kOp, x),
                            q.quantizer,
                            static_cast<Rounding>(rounding),
                            random.data(),
                            static_cast<Estimator>(estimator),
                            static_cast<float>(delta),
                            static_cast<float>(delta / 2 / std::tanh(delta / 2))};
  Device::run(x, [&](const auto& where) { fake_quant_gradient(args, where); });
  return dx;
}

Tensor gradient_meta(const Tensor& dy, const Tensor& x, const Tensor& scale,
                     const OptionalTensor& zero_point, int64_t quant_min, int64_t quant_max,
                     std::optional<int64_t> axis, std::optional<int64_t> group, int64_t rounding,
                     const OptionalTensor& rng, int64_t estimator, double,
                     at::MemoryFormat format) {
  check_gradient(dy, x, scale, zero_point, quant_min, quant_max, {axis, group}, rounding, rng,
                 estimator, format);
  return at::empty_like(x, x.options(), format);
}

// The gradient passes unchanged.
struct Identity : torch::autograd::Function<Identity> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext*, const Tensor& x, const FakeQuantArguments& a,
                        at::MemoryFormat format) {
    at::AutoDispatchBelowADInplaceOrView below;
    return std::get<0>(fake_quant(x, a, false, format));
  }

  static variable_list backward(AutogradContext*, const variable_list& dy) {
    return {dy[0], Tensor(), Tensor()};
  }
};

// The gradient depends on where x lies in its step, so x is saved.
struct Shaped : torch::autograd::Function<Shaped> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& x, const FakeQuantArguments& a,
                        Estimator estimator, double delta, at::MemoryFormat format) {
    at::AutoDispatchBelowADInplaceOrView below;
    // rng moves on before the backward pass, which has to round as this pass did.
    Tensor rng = a.rng.value_or(Tensor());
    if (rng.defined()) rng = rng.clone();
    context->save_for_backward({x, a.scale, a.zero_point.value_or(Tensor()), rng});
    auto& saved = context->saved_data;
    saved["quant_min"] = a.quant_min;
    saved["quant_max"] = a.quant_max;
    saved["axis"] = a.granularity.axis;
    saved["group"] = a.granularity.group;
    saved["rounding"] = static_cast<int64_t>(a.rounding);
    saved["estimator"] = static_cast<int64_t>(estimator);
    saved["delta"] = delta;
    saved["format"] = static_cast<int64_t>(format);
    return std::get<0>(fake_quant(x, a, false, format));
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    static auto op = find_op<GradientSignature>("bitpare::_fake_quant_gradient");
    auto tensors = context->get_saved_variables();
    BelowAutogradUnlessRecording below;
    auto& saved = context->saved_data;
    auto optional = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
    Tensor dx =
        op.call(dy[0], tensors[0], tensors[1], optional(tensors[2]), saved["quant_min"].toInt(),
                saved["quant_max"].toInt(), saved["axis"].toOptional<int64_t>(),
                saved["group"].toOptional<int64_t>(), saved["rounding"].toInt(),
                optional(tensors[3]), saved["estimator"].toInt(), saved["delta"].toDouble(),
                static_cast<at::MemoryFormat>(saved["format"].toInt()));
    return {dx, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// Values are checked by `_fake_quant`, which every path calls.
FakeQuantArguments parsed(const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point,
                          int64_t quant_min, int64_t quant_max, const Granularity& granularity,
                          c10::string_view rounding, const OptionalTensor& rng) {
  check_input(kOp, x);
  return {scale, zero_point, quant_min, quant_max, granularity, parse_rounding(kOp, rounding),
          rng,   false};
}

Estimator parse_estimator(c10::string_view name, double delta) {
  auto estimator = static_cast<Estimator>(
      parse_name(kOp, "estimator", name, {"ste", "identity", "ewgs", "tanh"}));
  TORCH_CHECK(estimator != Estimator::tanh || (delta > 0 && std::isfinite(delta)), kOp,
              ": delta must be positive with estimator='tanh' (the sharpness of its steps), got ",
              delta);
  TORCH_CHECK(std::isfinite(delta) && delta >= 0, kOp, ": delta must be 0 or more, got ", delta);
  return estimator;
}

Tensor without_gradient(const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point,
                        int64_t quant_min, int64_t quant_max, std::optional<int64_t> axis,
                        std::optional<int64_t> group, c10::string_view rounding,
                        c10::string_view estimator, double delta, const OptionalTensor& rng) {
  Granularity granularity = {axis, group};
  FakeQuantArguments a =
      parsed(x, scale, zero_point, quant_min, quant_max, granularity, rounding, rng);
  parse_estimator(estimator, delta);
  Tensor y = std::get<0>(fake_quant(x, a, false, format_of(x, granularity)));
  return y.contiguous(x.suggest_memory_format());
}

Tensor autograd(const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point,
                int64_t quant_min, int64_t quant_max, std::optional<int64_t> axis,
                std::optional<int64_t> group, c10::string_view rounding, c10::string_view estimator,
                double delta, const OptionalTensor& rng) {
  if (!needs_gradient(x)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return without_gradient(x, scale, zero_point, quant_min, quant_max, axis, group, rounding,
                            estimator, delta, rng);
  }
  Granularity granularity = {axis, group};
  FakeQuantArguments a =
      parsed(x, scale, zero_point, quant_min, quant_max, granularity, rounding, rng);
  Estimator chosen = parse_estimator(estimator, delta);
  at::MemoryFormat format = format_of(x, granularity);
  Tensor y;
  if (chosen == Estimator::ste) {
    y = with_straight_through(x, format, [&] { return fake_quant(x, a, true, format); });
  } else if (chosen == Estimator::identity) {
    y = Identity::apply(x, a, format);
  } else {
    y = Shaped::apply(x, a, chosen, delta, format);
  }
  return y.contiguous(x.suggest_memory_format());
}

}  // namespace

std::tuple<Tensor, Tensor> fake_quant(const Tensor& x, const FakeQuantArguments& a,
                                      bool save_inside, at::MemoryFormat format) {
  static auto op = find_op<ForwardSignature>("bitpare::_fake_quant");
  return op.call(x, a.scale, a.zero_point, a.quant_min, a.quant_max, a.granularity.axis,
                 a.granularity.group, static_cast<int64_t>(a.rounding), a.rng, a.floored,
                 save_inside, format);
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
