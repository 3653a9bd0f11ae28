#include "kernels/binarize.h"

#include "ops/mean_magnitude.h"

namespace bitpare::ops {
namespace {

// binarize and ternarize differ in their levels; both call `_binarize` below autograd.
const char* name_of(Levels levels) { return levels == Levels::ternary ? "ternarize" : "binarize"; }

// The arguments of `_binarize`. levels: a Levels.
struct ForwardOptions {
  const Tensor& x;
  const Tensor& scale;
  const OptionalTensor& threshold;
  int64_t levels;
  Granularity granularity;
  at::MemoryFormat format;

  auto fields() const {
    return std::tie(x, scale, threshold, levels, granularity.axis, granularity.group, format);
  }
};

// The arguments of `_binarize_gradient`.
struct GradientOptions {
  const Tensor& dy;
  const Tensor& x;
  const Tensor& scale;
  const OptionalTensor& threshold;
  int64_t levels;
  bool clipped;
  Granularity granularity;
  at::MemoryFormat format;

  auto fields() const {
    return std::tie(dy, x, scale, threshold, levels, clipped, granularity.axis, granularity.group,
                    format);
  }
};

template <class Options>
QuantizerTensors levels_of(const char* op, const Options& o, const ReduceLayout& layout,
                           bool see_values) {
  return quantizer_of(op, {.scale = o.scale, .threshold = o.threshold, .floored = true}, layout,
                      see_values);
}

template <class Options>
const char* checked_name(const Options& o) {
  check_choice("binarize", "levels", o.levels, Levels::ternary);
  auto levels = static_cast<Levels>(o.levels);
  const char* op = name_of(levels);
  check_input(op, o.x);
  check_granularity(op, o.x, o.granularity);
  check_scale(op, o.x, o.scale, o.granularity);
  check_threshold(op, o.x, o.threshold, o.granularity);
  TORCH_CHECK(o.threshold || levels != Levels::ternary, op, ": threshold must be given");
  check_format(op, o.x, o.format, o.granularity);
  return op;
}

template <class Device>
Tensor forward(const ForwardOptions& o) {
  const char* op = checked_name(o);
  Device::require(op, o.x);
  Tensor source = o.x.contiguous(o.format), y = at::empty_like(source);
  if (o.x.numel() == 0) return y;
  auto q = levels_of(op, o, layout_of(o.x, o.granularity, o.format), Device::kSeesValues);
  Binarize args = {
      .x = source.const_data_ptr(),
      .y = y.data_ptr(),
      .n = o.x.numel(),
      .dtype = dtype_of(op, o.x),
      .quantizer = q.quantizer,
      .levels = static_cast<Levels>(o.levels),
  };
  Device::run(o.x, [&](const auto& where) { bitpare::binarize(args, where); });
  return y;
}

Tensor forward_meta(const ForwardOptions& o) {
  checked_name(o);
  return at::empty_like(o.x, o.x.options(), o.format);
}

template <class Device>
std::tuple<Tensor, Tensor> gradient(const GradientOptions& o) {
  const char* op = checked_name(o);
  Device::require(op, o.x);
  check_like(op, "dy", o.dy, o.x);
  Tensor dy = o.dy.contiguous(o.format), source = o.x.contiguous(o.format);
  Tensor dx = at::empty_like(source), ds = at::empty_like(o.scale, at::MemoryFormat::Contiguous);
  ReduceLayout layout = layout_of(o.x, o.granularity, o.format);
  auto q = levels_of(op, o, layout, Device::kSeesValues);
  Tensor partial = new_partial(o.x, layout, 1);
  BinarizeGradient args = {
      .dy = dy.const_data_ptr(),
      .x = source.const_data_ptr(),
      .dx = dx.data_ptr(),
      .dtype = dtype_of(op, o.x),
      .quantizer = q.quantizer,
      .levels = static_cast<Levels>(o.levels),
      .clipped = o.clipped,
      .layout = layout,
      .partial = partial.data_ptr<float>(),
      .scale_gradient = ds.data_ptr<float>(),
  };
  Device::run(o.x, [&](const auto& where) { binarize_gradient(args, where); });
  return {dx, ds};
}

std::tuple<Tensor, Tensor> gradient_meta(const GradientOptions& o) {
  check_like(checked_name(o), "dy", o.dy, o.x);
  return {at::empty_like(o.x, o.x.options(), o.format),
          at::empty_like(o.scale, at::MemoryFormat::Contiguous)};
}

// The arguments of one call, the scale and threshold filled in where they were not given.
struct Call {
  Levels levels;
  bool clipped;
  Tensor scale;
  OptionalTensor threshold;
  Granularity granularity;
  at::MemoryFormat format;
};

// TWN's threshold (Li and Liu, "Ternary weight networks", 2016, eq. 6).
constexpr double kTwnThreshold = 0.7;

Call prepared(const Tensor& x, const OptionalTensor& scale, const OptionalTensor& threshold,
              Levels levels, const Granularity& granularity, c10::string_view estimator) {
  const char* op = name_of(levels);
  check_input(op, x);
  check_granularity(op, x, granularity);
  if (scale) check_scale(op, x, *scale, granularity);
  check_threshold(op, x, threshold, granularity);
  bool clipped = parse_name(op, "estimator", estimator, {"ste", "identity"}) == 0;
  Call call = {levels, clipped, Tensor(), threshold, granularity, format_of(x, granularity)};
  at::AutoDispatchBelowADInplaceOrView below;
  if (levels == Levels::ternary && !threshold) {
    call.threshold = scale ? scale->detach() * 0.5
                           : mean_magnitude(x, std::nullopt, granularity) * kTwnThreshold;
  }
  call.scale = scale ? *scale : mean_magnitude(x, call.threshold, granularity);
  return call;
}

Tensor call_forward(const Tensor& x, const Call& c) {
  static auto op = find_op<decltype(forward_meta)>("bitpare::_binarize");
  ForwardOptions options = {
      .x = x,
      .scale = c.scale,
      .threshold = c.threshold,
      .levels = static_cast<int64_t>(c.levels),
      .granularity = c.granularity,
      .format = c.format,
  };
  return call(op, options);
}

struct Differentiable : torch::autograd::Function<Differentiable> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& scale,
                        const Call& c) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, scale, c.threshold.value_or(Tensor())});
    auto& saved = context->saved_data;
    saved["levels"] = static_cast<int64_t>(c.levels);
    saved["clipped"] = c.clipped;
    saved["axis"] = c.granularity.axis;
    saved["group"] = c.granularity.group;
    saved["format"] = static_cast<int64_t>(c.format);
    return call_forward(x, c);
  }

  static variable_list backward(AutogradContext* context, const variable_list& dy) {
    static auto op = find_op<decltype(gradient_meta)>("bitpare::_binarize_gradient");
    auto tensors = context->get_saved_variables();
    BelowAutogradUnlessRecording below;
    auto& saved = context->saved_data;
    GradientOptions options = {
        .dy = dy[0],
        .x = tensors[0],
        .scale = tensors[1],
        .threshold = if_defined(tensors[2]),
        .levels = saved["levels"].toInt(),
        .clipped = saved["clipped"].toBool(),
        .granularity = {saved["axis"].toOptional<int64_t>(), saved["group"].toOptional<int64_t>()},
        .format = static_cast<at::MemoryFormat>(saved["format"].toInt()),
    };
    auto [dx, ds] = call(op, options);
    return {dx, ds, Tensor()};
  }
};

Tensor without_gradient(const Tensor& x, const Call& c) {
  return call_forward(x, c).contiguous(x.suggest_memory_format());
}

Tensor with_gradient(const Tensor& x, const Call& c) {
  if (!needs_gradient(x) && !needs_gradient(c.scale)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return without_gradient(x, c);
  }
  return Differentiable::apply(x, c.scale, c).contiguous(x.suggest_memory_format());
}

Levels parse_levels(c10::string_view levels) {
  return static_cast<Levels>(
      parse_name("binarize", "levels", levels, {"sign", "zero_one", "minus_one_zero"}));
}

using Run = Tensor (*)(const Tensor&, const Call&);

template <Run kRun>
Tensor binarize(const Tensor& x, const OptionalTensor& scale, c10::string_view levels,
                std::optional<int64_t> axis, std::optional<int64_t> group,
                c10::string_view estimator) {
  return kRun(x, prepared(x, scale, std::nullopt, parse_levels(levels), {axis, group}, estimator));
}

template <Run kRun>
Tensor ternarize(const Tensor& x, const OptionalTensor& scale, const OptionalTensor& threshold,
                 std::optional<int64_t> axis, std::optional<int64_t> group,
                 c10::string_view estimator) {
  return kRun(x, prepared(x, scale, threshold, Levels::ternary, {axis, group}, estimator));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "binarize(Tensor x, Tensor? scale=None, *, str levels='sign', int? axis=None, "
      "int? group=None, str estimator='ste') -> Tensor",
      tags());
  m.def(
      "ternarize(Tensor x, Tensor? scale=None, Tensor? threshold=None, *, int? axis=None, "
      "int? group=None, str estimator='ste') -> Tensor",
      tags());
  m.def(
      "_binarize(Tensor x, Tensor scale, Tensor? threshold, int levels, int? axis, int? group, "
      "MemoryFormat memory_format) -> Tensor",
      tags());
  m.def(
      "_binarize_gradient(Tensor dy, Tensor x, Tensor scale, Tensor? threshold, int levels, "
      "bool clipped, int? axis, int? group, MemoryFormat memory_format) -> (Tensor, Tensor)",
      tags());
  composite(m, "binarize", binarize<without_gradient>, binarize<with_gradient>);
  composite(m, "ternarize", ternarize<without_gradient>, ternarize<with_gradient>);
  kernels(m, "_binarize", forward<Cpu>, forward<Cuda>, forward_meta);
  no_derivative(m, "_binarize");
  kernels(m, "_binarize_gradient", gradient<Cpu>, gradient<Cuda>, gradient_meta);
  no_derivative(m, "_binarize_gradient");
}

}  // namespace bitpare::ops
