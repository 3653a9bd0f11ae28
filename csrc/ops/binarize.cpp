#include "kernels/binarize.h"

#include "ops/mean_magnitude.h"

namespace bitpare::ops {
namespace {

// binarize and ternarize differ in their levels; both are `_binarize` below autograd.
const char* name_of(Levels levels) { return levels == Levels::ternary ? "ternarize" : "binarize"; }

using ForwardSignature = Tensor(const Tensor& x, const Tensor& scale,
                                const OptionalTensor& threshold, int64_t levels,
                                std::optional<int64_t> axis, std::optional<int64_t> group,
                                at::MemoryFormat memory_format);
using GradientSignature = std::tuple<Tensor, Tensor>(
    const Tensor& dy, const Tensor& x, const Tensor& scale, const OptionalTensor& threshold,
    int64_t levels, bool clipped, std::optional<int64_t> axis, std::optional<int64_t> group,
    at::MemoryFormat memory_format);
QuantizerTensors levels_of(const char* op, const Tensor& scale, const OptionalTensor& threshold,
                           const ReduceLayout& layout, bool see_values) {
  auto q = quantizer_of(op, scale, std::nullopt, 0, 0, layout, true, see_values);
  if (threshold) {
    q.zero_point = threshold->contiguous();
    q.quantizer.threshold = q.zero_point.const_data_ptr<float>();
  }
  return q;
}

const char* checked_name(const Tensor& x, const Tensor& scale, const OptionalTensor& threshold,
                         int64_t levels, const Granularity& granularity, at::MemoryFormat format) {
  check_choice("binarize", "levels", levels, Levels::ternary);
  const char* op = name_of(static_cast<Levels>(levels));
  check_input(op, x);
  check_granularity(op, x, granularity);
  check_scale(op, x, scale, granularity);
  check_threshold(op, x, threshold, granularity);
  TORCH_CHECK(threshold || static_cast<Levels>(levels) != Levels::ternary, op,
              ": threshold must be given");
  check_format(op, x, format, granularity);
  return op;
}

template <class Device>
Tensor forward(const Tensor& x, const Tensor& scale, const OptionalTensor& threshold,
               int64_t levels, std::optional<int64_t> axis, std::optional<int64_t> group,
               at::MemoryFormat format) {
  const char* op = checked_name(x, scale, threshold, levels, {axis, group}, format);
  Device::require(op, x);
  Tensor source = x.contiguous(format), y = at::empty_like(source);
  if (x.numel() == 0) return y;
  auto q =
      levels_of(op, scale, threshold, layout_of(x, {axis, group}, format), Device::kSeesValues);
  Binarize args = {source.const_data_ptr(), y.data_ptr(), x.numel(),
                   dtype_of(op, x),         q.quantizer,  static_cast<Levels>(levels)};
  Device::run(x, [&](const auto& where) { bitpare::binarize(args, where); });
  return y;
}

Tensor forward_meta(const Tensor& x, const Tensor& scale, const OptionalTensor& threshold,
                    int64_t levels, std::optional<int64_t> axis, std::optional<int64_t> group,
                    at::MemoryFormat format) {
  checked_name(x, scale, threshold, levels, {axis, group}, format);
  return at::empty_like(x, x.options(), format);
}

template <class Device>
std::tuple<Tensor, Tensor> gradient(const Tensor& dy, const Tensor& x, const Tensor& scale,
                                    const OptionalTensor& threshold, int64_t levels, bool clipped,
                                    std::optional<int64_t> axis, std::optional<int64_t> group,
                                    at::MemoryFormat format) {
  const char* op = checked_name(x, scale, threshold, levels, {axis, group}, format);
  Device::require(op, x);
  check_like(op, "dy", dy, x);
  Tensor dy_source = dy.contiguous(format), source = x.contiguous(format);
  Tensor dx = at::empty_like(source), ds = at::empty_like(scale, at::MemoryFormat::Contiguous);
  ReduceLayout layout = layout_of(x, {axis, group}, format);
  auto q = levels_of(op, scale, threshold, layout, Device::kSeesValues);
  Tensor partial = new_partial(x, layout, 1);
  BinarizeGradient args = {dy_source.const_data_ptr(),
                           source.const_data_ptr(),
                           dx.data_ptr(),
                           dtype_of(op, x),
                           q.quantizer,
                           static_cast<Levels>(levels),
                           clipped,
                           layout,
                           partial.data_ptr<float>(),
                           ds.data_ptr<float>()};
  Device::run(x, [&](const auto& where) { binarize_gradient(args, where); });
  return {dx, ds};
}

std::tuple<Tensor, Tensor> gradient_meta(const Tensor& dy, const Tensor& x, const Tensor& scale,
                                         const OptionalTensor& threshold, int64_t levels, bool,
                                         std::optional<int64_t> axis, std::optional<int64_t> group,
                                         at::MemoryFormat format) {
  check_like(checked_name(x, scale, threshold, levels, {axis, group}, format), "dy", dy, x);
  return {at::empty_like(x, x.options(), format),
          at::empty_like(scale, at::MemoryFormat::Contiguous)};
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
  static auto op = find_op<ForwardSignature>("bitpare::_binarize");
  return op.call(x, c.scale, c.threshold, static_cast<int64_t>(c.levels), c.granularity.axis,
                 c.granularity.group, c.format);
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
    static auto op = find_op<GradientSignature>("bitpare::_binarize_gradient");
    auto tensors = context->get_saved_variables();
    BelowAutogradUnlessRecording below;
    auto& saved = context->saved_data;
    OptionalTensor threshold;
    if (tensors[2].defined()) threshold = tensors[2];
    auto [dx, ds] = op.call(dy[0], tensors[0], tensors[1], threshold, saved["levels"].toInt(),
                            saved["clipped"].toBool(), saved["axis"].toOptional<int64_t>(),
                            saved["group"].toOptional<int64_t>(),
                            static_cast<at::MemoryFormat>(saved["format"].toInt()));
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
