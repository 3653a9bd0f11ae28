#include "kernels/fake_float.h"

#include <cmath>

#include "ops/straight_through.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "fake_float";

using ForwardSignature = std::tuple<Tensor, Tensor>(const Tensor& x, const OptionalTensor& scale,
                                                    int64_t exponent_bits, int64_t mantissa_bits,
                                                    std::optional<int64_t> axis,
                                                    std::optional<int64_t> group, int64_t rounding,
                                                    const OptionalTensor& rng, bool save_inside,
                                                    at::MemoryFormat memory_format);

// The formats of the OCP and IEEE standards: from 5 exponent bits on, the top exponent is infinity
// and NaN (e5m2, fp16, bf16); e4m3 gives up one code to NaN; with less, every code is a number
// (e2m1, e2m3, e3m2).
FloatFormat float_format(int64_t exponent_bits, int64_t mantissa_bits) {
  int64_t bias = (1 << (exponent_bits - 1)) - 1;
  int64_t top = (1 << exponent_bits) - 1 - bias;
  double mantissa = 2.0 - std::ldexp(1.0, static_cast<int>(-mantissa_bits));
  if (exponent_bits >= 5) top -= 1;
  if (exponent_bits == 4 && mantissa_bits > 0) {
    mantissa = 2.0 - std::ldexp(2.0, static_cast<int>(-mantissa_bits));
  }
  return {static_cast<int32_t>(mantissa_bits), static_cast<int32_t>(1 - bias),
          static_cast<float>(std::ldexp(mantissa, static_cast<int>(top)))};
}

void check(const Tensor& x, const OptionalTensor& scale, int64_t exponent_bits,
           int64_t mantissa_bits, const Granularity& granularity, int64_t rounding,
           const OptionalTensor& rng, at::MemoryFormat format) {
  check_input(kOp, x);
  check_granularity(kOp, x, granularity);
  TORCH_CHECK(exponent_bits >= 2 && exponent_bits <= 8, kOp,
              ": exponent_bits must be in [2, 8], got ", exponent_bits);
  TORCH_CHECK(mantissa_bits >= 0 && mantissa_bits <= 23, kOp,
              ": mantissa_bits must be in [0, 23], got ", mantissa_bits);
  TORCH_CHECK(scale || (!granularity.axis && !granularity.group), kOp,
              ": axis and group need a scale");
  if (scale) check_scale(kOp, x, *scale, granularity);
  check_choice(kOp, "rounding", rounding, Rounding::stochastic);
  check_rng(kOp, static_cast<Rounding>(rounding), rng);
  check_format(kOp, x, format, granularity);
}

template <class Device>
std::tuple<Tensor, Tensor> forward(const Tensor& x, const OptionalTensor& scale,
                                   int64_t exponent_bits, int64_t mantissa_bits,
                                   std::optional<int64_t> axis, std::optional<int64_t> group,
                                   int64_t rounding, const OptionalTensor& rng, bool save_inside,
                                   at::MemoryFormat format) {
  Device::require(kOp, x);
  check(x, scale, exponent_bits, mantissa_bits, {axis, group}, rounding, rng, format);
  Tensor source = x.contiguous(format), y = at::empty_like(source);
  Tensor inside = new_bits(source, save_inside);
  if (x.numel() == 0) return {y, inside};
  auto q = quantizer_of(kOp, scale, std::nullopt, 0, 0, layout_of(x, {axis, group}, format), false,
                        Device::kSeesValues);
  Array<int64_t> random(rng);
  FakeFloat args = {source.const_data_ptr(),
                    y.data_ptr(),
                    save_inside ? static_cast<uint64_t*>(inside.data_ptr()) : nullptr,
                    x.numel(),
                    dtype_of(kOp, x),
                    q.quantizer,
                    float_format(exponent_bits, mantissa_bits),
                    static_cast<Rounding>(rounding),
                    random.data()};
  Device::run(x, [&](const auto& where) { bitpare::fake_float(args, where); });
  return {y, inside};
}

std::tuple<Tensor, Tensor> forward_meta(const Tensor& x, const OptionalTensor& scale,
                                        int64_t exponent_bits, int64_t mantissa_bits,
                                        std::optional<int64_t> axis, std::optional<int64_t> group,
                                        int64_t rounding, const OptionalTensor& rng,
                                        bool save_inside, at::MemoryFormat format) {
  check(x, scale, exponent_bits, mantissa_bits, {axis, group}, rounding, rng, format);
  return {at::empty_like(x, x.options(), format), new_bits(x, save_inside)};
}

Tensor run(const Tensor& x, const OptionalTensor& scale, int64_t exponent_bits,
           int64_t mantissa_bits, std::optional<int64_t> axis, std::optional<int64_t> group,
           c10::string_view rounding, const OptionalTensor& rng, bool differentiable) {
  Granularity granularity = {axis, group};
  check_input(kOp, x);
  Rounding parsed = parse_rounding(kOp, rounding);
  at::MemoryFormat format = format_of(x, granularity);
  auto call = [&](bool save_inside) {
    static auto op = find_op<ForwardSignature>("bitpare::_fake_float");
    return op.call(x, scale, exponent_bits, mantissa_bits, axis, group,
                   static_cast<int64_t>(parsed), rng, save_inside, format);
  };
  Tensor y = differentiable ? with_straight_through(x, format, [&] { return call(true); })
                            : std::get<0>(call(false));
  return y.contiguous(x.suggest_memory_format());
}

Tensor without_gradient(const Tensor& x, const OptionalTensor& scale, int64_t exponent_bits,
                        int64_t mantissa_bits, std::optional<int64_t> axis,
                        std::optional<int64_t> group, c10::string_view rounding,
                        const OptionalTensor& rng) {
  return run(x, scale, exponent_bits, mantissa_bits, axis, group, rounding, rng, false);
}

Tensor autograd(const Tensor& x, const OptionalTensor& scale, int64_t exponent_bits,
                int64_t mantissa_bits, std::optional<int64_t> axis, std::optional<int64_t> group,
                c10::string_view rounding, const OptionalTensor& rng) {
  if (needs_gradient(x)) {
    return run(x, scale, exponent_bits, mantissa_bits, axis, group, rounding, rng, true);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return run(x, scale, exponent_bits, mantissa_bits, axis, group, rounding, rng, false);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "fake_float(Tensor x, Tensor? scale=None, *, int exponent_bits, int mantissa_bits, "
      "int? axis=None, int? group=None, str rounding='nearest', Tensor? rng=None) -> Tensor",
      tags());
  m.def(
      "_fake_float(Tensor x, Tensor? scale, int exponent_bits, int mantissa_bits, int? axis, "
      "int? group, int rounding, Tensor? rng, bool save_inside, MemoryFormat memory_format) -> "
      "(Tensor, Tensor)",
      tags());
  composite(m, "fake_float", without_gradient, autograd);
  kernels(m, "_fake_float", forward<Cpu>, forward<Cuda>, forward_meta);
  no_derivative(m, "_fake_float");
}

}  // namespace bitpare::ops
