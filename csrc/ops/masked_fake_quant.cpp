#include "kernels/masked_fake_quant.h"

#include "ops/mask.h"
#include "ops/straight_through.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "masked_fake_quant";

// The arguments of `_masked_fake_quant`.
struct Options {
  const Tensor& x;
  const Tensor& mask;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  int64_t quant_min, quant_max;
  Granularity granularity;
  bool masks_gradient, save_inside;
  at::MemoryFormat format;

  auto fields() const {
    return std::tie(x, mask, scale, zero_point, quant_min, quant_max, granularity.axis,
                    granularity.group, masks_gradient, save_inside, format);
  }
};

// The arguments of the public op.
struct PublicOptions {
  const Tensor& x;
  const Tensor& mask;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  int64_t quant_min, quant_max;
  Granularity granularity;
  c10::string_view mode;

  auto fields() const {
    return std::tie(x, mask, scale, zero_point, quant_min, quant_max, granularity.axis,
                    granularity.group, mode);
  }
};

void check(const Options& o) {
  check_on_grid(kOp, o);
  check_mask(kOp, o.mask, o.x.sym_numel());
}

template <class Device>
std::tuple<Tensor, Tensor> forward(const Options& o) {
  Device::require(kOp, o.x);
  check(o);
  Tensor source = o.x.contiguous(o.format), y = at::empty_like(source);
  Tensor inside = new_bits(source, o.save_inside);
  if (o.x.numel() == 0) return {y, inside};
  auto q = quantizer_on_grid<Device>(kOp, o, layout_of(o.x, o.granularity, o.format));
  Array<uint64_t> mask(o.mask);
  MaskedFakeQuant args = {
      .x = source.const_data_ptr(),
      .mask = mask.data(),
      .y = y.data_ptr(),
      .inside = o.save_inside ? static_cast<uint64_t*>(inside.data_ptr()) : nullptr,
      .layout = mask_layout(source, o.format),
      .dtype = dtype_of(kOp, o.x),
      .quantizer = q.quantizer,
      .masks_gradient = o.masks_gradient,
  };
  Device::run(o.x, [&](const auto& where) { bitpare::masked_fake_quant(args, where); });
  return {y, inside};
}

std::tuple<Tensor, Tensor> meta(const Options& o) {
  check(o);
  return {at::empty_like(o.x, o.x.options(), o.format), new_bits(o.x, o.save_inside)};
}

std::tuple<Tensor, Tensor> masked_fake_quant(const Options& options) {
  static auto op = find_op<decltype(meta)>("bitpare::_masked_fake_quant");
  return call(op, options);
}

Options parsed(const PublicOptions& o, bool save_inside) {
  check_input(kOp, o.x);
  return {
      .x = o.x,
      .mask = o.mask,
      .scale = o.scale,
      .zero_point = o.zero_point,
      .quant_min = o.quant_min,
      .quant_max = o.quant_max,
      .granularity = o.granularity,
      .masks_gradient = parse_mask_mode(kOp, o.mode) == MaskMode::hard,
      .save_inside = save_inside,
      .format = format_of(o.x, o.granularity),
  };
}

Tensor without_gradient(const PublicOptions& o) {
  Tensor y = std::get<0>(masked_fake_quant(parsed(o, false)));
  return y.contiguous(o.x.suggest_memory_format());
}

Tensor autograd(const PublicOptions& o) {
  if (!needs_gradient(o.x)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return without_gradient(o);
  }
  Options options = parsed(o, true);
  Tensor y = with_straight_through(o.x, options.format, [&] { return masked_fake_quant(options); });
  return y.contiguous(o.x.suggest_memory_format());
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
