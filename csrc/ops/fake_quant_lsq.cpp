#include "kernels/fake_quant_lsq.h"

#include <cmath>

#include "ops/fake_quant.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "fake_quant_lsq";

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// The arguments of `_fake_quant_lsq_gradient`.
struct GradientOptions {
  const Tensor& dy;
  const Tensor& x;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  int64_t quant_min, quant_max;
  Granularity granularity;
  std::optional<double> grad_scale;
  at::MemoryFormat format;

  auto fields() const {
    return std::tie(dy, x, scale, zero_point, quant_min, quant_max, granularity.axis,
                    granularity.group, grad_scale, format);
  }
};

// The arguments of the public op.
struct PublicOptions {
  const Tensor& x;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  int64_t quant_min, quant_max;
  Granularity granularity;
  std::optional<double> grad_scale;

  auto fields() const {
    return std::tie(x, scale, zero_point, quant_min, quant_max, granularity.axis, granularity.group,
                    grad_scale);
  }
};

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

void check(const GradientOptions& o) {
  check_on_grid(kOp, o);
  check_like(kOp, "dy", o.dy, o.x);
}

bool is_learned(const OptionalTensor& zero_point) {
  return zero_point && zero_point->scalar_type() == at::kFloat;
}

Tensor new_zero_point_gradient(const GradientOptions& o) {
  if (!o.zero_point || !is_learned(o.zero_point)) return at::empty({0}, o.scale.options());
  return at::empty_like(*o.zero_point, at::MemoryFormat::Contiguous);
}

template <class Device>
Gradients gradient(const GradientOptions& o) {
  Device::require(kOp, o.x);
  check(o);
  Tensor dy = o.dy.contiguous(o.format), source = o.x.contiguous(o.format);
  Tensor dx = at::empty_like(source), ds = at::empty_like(o.scale, at::MemoryFormat::Contiguous);
  Tensor dz = new_zero_point_gradient(o);
  ReduceLayout layout = layout_of(o.x, o.granularity, o.format);
  auto q = quantizer_on_grid<Device>(kOp, o, layout, true);
  Tensor partial = new_partial(o.x, layout, kLsqTerms);
  double g = o.grad_scale.value_or(default_grad_scale(o.x, o.granularity, layout, o.quant_max));
  FakeQuantLsqGradient args = {
      .dy = dy.const_data_ptr(),
      .x = source.const_data_ptr(),
      .dx = dx.data_ptr(),
      .dtype = dtype_of(kOp, o.x),
      .quantizer = q.quantizer,
      .layout = layout,
      .partial = partial.data_ptr<float>(),
      .scale_gradient = ds.data_ptr<float>(),
      .zero_point_gradient = is_learned(o.zero_point) ? dz.data_ptr<float>() : nullptr,
      .grad_scale = static_cast<float>(g),
  };
  Device::run(o.x, [&](const auto& where) { fake_quant_lsq_gradient(args, where); });
  return {dx, ds, dz};
}

Gradients gradient_meta(const GradientOptions& o) {
  check(o);
  return {at::empty_like(o.x, o.x.options(), o.format),
          at::empty_like(o.scale, at::MemoryFormat::Contiguous), new_zero_point_gradient(o)};
}

Tensor call_forward(const PublicOptions& o, at::MemoryFormat format) {
  FakeQuantOptions options = {
      .x = o.x,
      .scale = o.scale,
      .zero_point = o.zero_point,
      .quant_min = o.quant_min,
      .quant_max = o.quant_max,
      .granularity = o.granularity,
      .rounding = static_cast<int64_t>(Rounding::nearest),
      .rng = kNoTensor,
      .floored = true,
      .save_inside = false,
      .format = format,
  };
  return std::get<0>(fake_quant(options));
}

struct Learned : torch::autograd::Function<Learned> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& scale,
                        const OptionalTensor& zero_point, const PublicOptions& o,
                        at::MemoryFormat format) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, scale, zero_point.value_or(Tensor())});
    auto& saved = context->saved_data;
    saved["quant_min"] = o.quant_min;
    saved["quant_max"] = o.quant_max;
    saved["axis"] = o.granularity.axis;
    saved["group"] = o.granularity.group;
    saved["grad_scale"] = o.grad_scale;
    saved["format"] = static_cast<int64_t>(format);
    return call_forward(o, format);
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    static auto op = find_op<decltype(gradient_meta)>("bitpare::_fake_quant_lsq_gradient");
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
        .grad_scale = saved["grad_scale"].toOptional<double>(),
        .format = static_cast<at::MemoryFormat>(saved["format"].toInt()),
    };
    auto [dx, ds, dz] = call(op, options);
    return {dx, ds, is_learned(options.zero_point) ? dz : Tensor(), Tensor(), Tensor()};
  }
};

// The rest is checked by `_fake_quant`, which is called next.
void check_public(const PublicOptions& o) {
  check_input(kOp, o.x);
  TORCH_CHECK(!o.grad_scale || std::isfinite(*o.grad_scale), kOp,
              ": grad_scale must be finite, got ", *o.grad_scale);
}

Tensor without_gradient(const PublicOptions& o) {
  check_public(o);
  return call_forward(o, format_of(o.x, o.granularity)).contiguous(o.x.suggest_memory_format());
}

Tensor autograd(const PublicOptions& o) {
  if (!needs_gradient(o.x) && !needs_gradient(o.scale) &&
      !(o.zero_point && needs_gradient(*o.zero_point))) {
    at::AutoDispatchBelowADInplaceOrView below;
    return without_gradient(o);
  }
  check_public(o);
  Tensor y = Learned::apply(o.x, o.scale, o.zero_point, o, format_of(o.x, o.granularity));
  return y.contiguous(o.x.suggest_memory_format());
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
