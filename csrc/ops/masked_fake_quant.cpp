#include "kernels/masked_fake_quant.h"

#include "ops/mask.h"
#include "ops/straight_through.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "masked_fake_quant";

using Signature = std::tuple<Tensor, Tensor>(const Tensor& x, const Tensor& mask,
                                             const Tensor& scale, const OptionalTensor& zero_point,
                                             int64_t quant_min, int64_t quant_max,
                                             std::optional<int64_t> axis,
                                             std::optional<int64_t> group, bool masks_gradient,
                                             bool save_inside, at::MemoryFormat memory_format);

// The op's arguments besides x.
struct Arguments {
  const Tensor& mask;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  int64_t quant_min, quant_max;
  Granularity granularity;
  bool masks_gradient;
};

void check(const Tensor& x, const Tensor& mask, const Tensor& scale,
           const OptionalTensor& zero_point, int64_t quant_min, int64_t quant_max,
           const Granularity& granularity, at::MemoryFormat format) {
  check_input(kOp, x);
  check_mask(kOp, mask, x.sym_numel());
  check_grid(kOp, quant_min, quant_max);
  check_granularity(kOp, x, granularity);
  check_scale(kOp, x, scale, granularity);
  check_zero_point(kOp, x, zero_point, granularity);
  check_format(kOp, x, format, granularity);
}

template <class Device>
std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& mask, const Tensor& scale,
                                   const OptionalTensor& zero_point, int64_t quant_min,
                                   int64_t quant_max, std::optional<int64_t> axis,
                                   std::optional<int64_t> group, bool masks_gradient,
                                   bool save_inside, at::MemoryFormat format) {
  Device::require(kOp, x);
  check(x, mask, scale, zero_point, quant_min, quant_max, {axis, group}, format);
  Tensor source = x.contiguous(format), y = at::empty_like(source), words = mask.contiguous();
  Tensor inside = new_bits(source, save_inside);
  if (x.numel() == 0) return {y, inside};
  auto q = quantizer_of(kOp, scale, zero_point, quant_min, quant_max,
                        layout_of(x, {axis, group}, format), false, Device::kSeesValues);
  MaskedFakeQuant args = {source.const_data_ptr(),
                          static_cast<const uint64_t*>(words.const_data_ptr()),
                          y.data_ptr(),
                          save_inside ? static_cast<uint64_t*>(inside.data_ptr()) : nullptr,
                          mask_layout(source, format),
                          dtype_of(kOp, x),
                          q.quantizer,
                          masks_gradient};
  Device::run(x, [&](const auto& where) { bitpare::masked_fake_quant(args, where); });
  return {y, inside};
}

std::tuple<Tensor, Tensor> meta(const Tensor& x, const Tensor& mask, const Tensor& scale,
                                const OptionalTensor& zero_point, int64_t quant_min,
                                int64_t quant_max, std::optional<int64_t> axis,
                                std::optional<int64_t> group, bool, bool save_inside,
                                at::MemoryFormat format) {
  check(x, mask, scale, zero_point, quant_min, quant_max, {axis, group}, format);
  return {at::empty_like(x, x.options(), format), new_bits(x, save_inside)};
}

std::tuple<Tensor, Tensor> call(const Tensor& x, const Arguments& a, bool save_inside,
                                at::MemoryFormat format) {
  static auto op = find_op<Signature>("bitpare::_masked_fake_quant");
  return op.call(x, a.mask, a.scale, a.zero_point, a.quant_min, a.quant_max, a.granularity.axis,
                 a.granularity.group, a.masks_gradient, save_inside, format);
}

Arguments parsed(const Tensor& x, const Tensor& mask, const Tensor& scale,
                 const OptionalTensor& zero_point, int64_t quant_min, int64_t quant_max,
                 const Granularity& granularity, c10::string_view mode) {
  check_input(kOp, x);
  bool hard = parse_mask_mode(kOp, mode) == MaskMode::hard;
  return {mask, scale, zero_point, quant_min, quant_max, granularity, hard};
}

Tensor without_gradient(const Tensor& x, const Tensor& mask, const Tensor& scale,
                        const OptionalTensor& zero_point, int64_t quant_min, int64_t quant_max,
                        std::optional<int64_t> axis, std::optional<int64_t> group,
                        c10::string_view mode) {
  Granularity granularity = {axis, group};
  Arguments a = parsed(x, mask, scale, zero_point, quant_min, quant_max, granularity, mode);
  Tensor y = std::get<0>(call(x, a, false, format_of(x, granularity)));
  return y.contiguous(x.suggest_memory_format());
}

Tensor autograd(const Tensor& x, const Tensor& mask, const Tensor& scale,
                const OptionalTensor& zero_point, int64_t quant_min, int64_t quant_max,
                std::optional<int64_t> axis, std::optional<int64_t> group, c10::string_view mode) {
  if (!needs_gradient(x)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return without_gradient(x, mask, scale, zero_point, quant_min, quant_max, axis, group, mode);
  }
  Granularity granularity = {axis, group};
  Arguments a = parsed(x, mask, scale, zero_point, quant_min, quant_max, granularity, mode);
  at::MemoryFormat format = format_of(x, granularity);
  Tensor y = with_straight_through(x, format, [&] { return call(x, a, true, format); });
  return y.contiguous(x.suggest_memory_format());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "masked_fake_quant(Tensor x, Tensor mask, Tensor scale, Tensor? zero_point=None, *, "
      "int quant_min, int quant_max, int? axis=None, int? group=None, str mode='hard') -> Tensor",
      tags());
  m.def(
      "_masked_fake_quant(Tensor x, Tensor mask, Tensor scale, Tensor? zero_point, "
      "int quant_min, int quant_max, int? axis, int? group, bool masks_gradient, "
      "bool save_inside, MemoryFormat memory_format) -> (Tensor, Tensor)",
      tags());
  composite(m, "masked_fake_quant", without_gradient, autograd);
  kernels(m, "_masked_fake_quant", forward<Cpu>, forward<Cuda>, meta);
  no_derivative(m, "_masked_fake_quant");
}

}  // namespace bitpare::ops
