#include "kernels/fake_quant_lsq.h"

#include <cmath>

#include "ops/fake_quant.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "fake_quant_lsq";

using Gradients = std::tuple<Tensor, Tensor, Tensor>;
using GradientSignature = Gradients(const Tensor& dy, const Tensor& x, const Tensor& scale,
                                    const OptionalTensor& zero_point, int64_t quant_min,
                                    int64_t quant_max, std::optional<int64_t> axis,
                                    std::optional<int64_t> group, std::optional<double> grad_scale,
                                    at::MemoryFormat memory_format);

// LSQ's 1 / sqrt(N * quant_max), with N the elements that share a scale in one sample: dimension 0
// is the batch unless it is the axis or x is flat, and groups never span it.
double default_grad_scale(const Tensor& x, const Granularity& g, const ReduceLayout& layout,
                          int64_t quant_max) {
  int64_t elements = layout.outer * layout.inner;
  bool axis_is_first = g.axis && (*g.axis == 0 || *g.axis == -x.dim());
  if (!g.group && !axis_is_first && x.dim() > 1) elements /= std::max<int64_t>(x.size(0), 1);
  double n = static_cast<double>(std::max<int64_t>(elements, 1));
  return 1.0 / std::sqrt(n * static_cast<double>(std::max<int64_t>(quant_max, 1)));
}

void check(const Tensor& dy, const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point,
           int64_t quant_min, int64_t quant_max, const Granularity& granularity,
           at::MemoryFormat format) {
  check_input(kOp, x);
  check_grid(kOp, quant_min, quant_max);
  check_granularity(kOp, x, granularity);
  check_scale(kOp, x, scale, granularity);
  check_zero_point(kOp, x, zero_point, granularity);
  check_like(kOp, "dy", dy, x);
  check_format(kOp, x, format, granularity);
}

template <class Device>
Gradients gradient(const Tensor& dy, const Tensor& x, const Tensor& scale,
                   const OptionalTensor& zero_point, int64_t quant_min, int64_t quant_max,
                   std::optional<int64_t> axis, std::optional<int64_t> group,
                   std::optional<double> grad_scale, at::MemoryFormat format) {
  Device::require(kOp, x);
  Granularity granularity = {axis, group};
  check(dy, x, scale, zero_point, quant_min, quant_max, granularity, format);
  Tensor dy_source = dy.contiguous(format), source = x.contiguous(format);
  Tensor dx = at::empty_like(source), ds = at::empty_like(scale, at::MemoryFormat::Contiguous);
  bool learned = zero_point && zero_point->scalar_type() == at::kFloat;
  Tensor dz = learned ? at::empty_like(*zero_point, at::MemoryFormat::Contiguous)
                      : at::empty({0}, scale.options());
  ReduceLayout layout = layout_of(x, granularity, format);
  auto q =
      quantizer_of(kOp, scale, zero_point, quant_min, quant_max, layout, true, Device::kSeesValues);
  Tensor partial = new_partial(x, layout, kLsqTerms);
  double g = grad_scale.value_or(default_grad_scale(x, granularity, layout, quant_max));
  FakeQuantLsqGradient args = {dy_source.const_data_ptr(),
                               source.const_data_ptr(),
                               dx.data_ptr(),
                               dtype_of(kOp, x),
                               q.quantizer,
                               layout,
                               partial.data_ptr<float>(),
                               ds.data_ptr<float>(),
                               learned ? dz.data_ptr<float>() : nullptr,
                               static_cast<float>(g)};
  Device::run(x, [&](const auto& where) { fake_quant_lsq_gradient(args, where); });
  return {dx, ds, dz};
}

Gradients gradient_meta(const Tensor& dy, const Tensor& x, const Tensor& scale,
                        const OptionalTensor& zero_point, int64_t quant_min, int64_t quant_max,
                        std::optional<int64_t> axis, std::optional<int64_t> group,
                        std::optional<double>, at::MemoryFormat format) {
  check(dy, x, scale, zero_point, quant_min, quant_max, {axis, group}, format);
  bool learned = zero_point && zero_point->scalar_type() == at::kFloat;
  Tensor dz = learned ? at::empty_like(*zero_point, at::MemoryFormat::Contiguous)
                      : at::empty({0}, scale.options());
  return {at::empty_like(x, x.options(), format),
          at::empty_like(scale, at::MemoryFormat::Contiguous), dz};
}

Tensor call_forward(const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point,
                    int64_t quant_min, int64_t quant_max, const Granularity& g,
                    at::MemoryFormat format) {
  const OptionalTensor no_rng;
  FakeQuantArguments arguments = {scale, zero_point,        quant_min, quant_max,
                                  g,     Rounding::nearest, no_rng,    true};
  return std::get<0>(fake_quant(x, arguments, false, format));
}

struct Learned : torch::autograd::Function<Learned> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& scale,
                        const OptionalTensor& zero_point, int64_t quant_min, int64_t quant_max,
                        const Granularity& g, std::optional<double> grad_scale,
                        at::MemoryFormat format) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, scale, zero_point.value_or(Tensor())});
    auto& saved = context->saved_data;
    saved["quant_min"] = quant_min;
    saved["quant_max"] = quant_max;
    saved["axis"] = g.axis;
    saved["group"] = g.group;
    saved["grad_scale"] = grad_scale;
    saved["format"] = static_cast<int64_t>(format);
    return call_forward(x, scale, zero_point, quant_min, quant_max, g, format);
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    static auto op = find_op<GradientSignature>("bitpare::_fake_quant_lsq_gradient");
    auto tensors = context->get_saved_variables();
    BelowAutogradUnlessRecording below;
    auto& saved = context->saved_data;
    OptionalTensor zero_point;
    if (tensors[2].defined()) zero_point = tensors[2];
    auto [dx, ds, dz] =
        op.call(dy[0], tensors[0], tensors[1], zero_point, saved["quant_min"].toInt(),
                saved["quant_max"].toInt(), saved["axis"].toOptional<int64_t>(),
                saved["group"].toOptional<int64_t>(), saved["grad_scale"].toOptional<double>(),
                static_cast<at::MemoryFormat>(saved["format"].toInt()));
    bool learned = zero_point && zero_point->scalar_type() == at::kFloat;
    return {dx, ds, learned ? dz : Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// The rest is checked by `_fake_quant`, which is called next.
void check(const Tensor& x, std::optional<double> grad_scale) {
  check_input(kOp, x);
  TORCH_CHECK(!grad_scale || std::isfinite(*grad_scale), kOp, ": grad_scale must be finite, got ",
              *grad_scale);
}

Tensor without_gradient(const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point,
                        int64_t quant_min, int64_t quant_max, std::optional<int64_t> axis,
                        std::optional<int64_t> group, std::optional<double> grad_scale) {
  Granularity g = {axis, group};
  check(x, grad_scale);
  Tensor y = call_forward(x, scale, zero_point, quant_min, quant_max, g, format_of(x, g));
  return y.contiguous(x.suggest_memory_format());
}

Tensor autograd(const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point,
                int64_t quant_min, int64_t quant_max, std::optional<int64_t> axis,
                std::optional<int64_t> group, std::optional<double> grad_scale) {
  if (!needs_gradient(x) && !needs_gradient(scale) &&
      !(zero_point && needs_gradient(*zero_point))) {
    at::AutoDispatchBelowADInplaceOrView below;
    return without_gradient(x, scale, zero_point, quant_min, quant_max, axis, group, grad_scale);
  }
  Granularity g = {axis, group};
  check(x, grad_scale);
  Tensor y =
      Learned::apply(x, scale, zero_point, quant_min, quant_max, g, grad_scale, format_of(x, g));
  return y.contiguous(x.suggest_memory_format());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "fake_quant_lsq(Tensor x, Tensor scale, Tensor? zero_point=None, *, int quant_min, "
      "int quant_max, int? axis=None, int? group=None, float? grad_scale=None) -> Tensor",
      tags());
  m.def(
      "_fake_quant_lsq_gradient(Tensor dy, Tensor x, Tensor scale, Tensor? zero_point, "
      "int quant_min, int quant_max, int? axis, int? group, float? grad_scale, "
      "MemoryFormat memory_format) -> (Tensor, Tensor, Tensor)",
      tags());
  composite(m, "fake_quant_lsq", without_gradient, autograd);
  kernels(m, "_fake_quant_lsq_gradient", gradient<Cpu>, gradient<Cuda>, gradient_meta);
  no_derivative(m, "_fake_quant_lsq_gradient");
}

}  // namespace bitpare::ops
