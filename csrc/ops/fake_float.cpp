#include "kernels/fake_float.h"

#include <cmath>

#include "ops/straight_through.h"

namespace bitpare::ops {
namespace {

constexpr const char* kOp = "fake_float";

// The arguments of `_fake_float`. rounding: a Rounding.
struct Options {
  const Tensor& x;
  const OptionalTensor& scale;
  int64_t exponent_bits, mantissa_bits;
  Granularity granularity;
  int64_t rounding;
  const OptionalTensor& rng;
  bool save_inside;
  at::MemoryFormat format;

  auto fields() const {
    return std::tie(x, scale, exponent_bits, mantissa_bits, granularity.axis, granularity.group,
                    rounding, rng, save_inside, format);
  }
};

// The arguments of the public op.
struct PublicOptions {
  const Tensor& x;
  const OptionalTensor& scale;
  int64_t exponent_bits, mantissa_bits;
  Granularity granularity;
  c10::string_view rounding;
  const OptionalTensor& rng;

  auto fields() const {
    return std::tie(x, scale, exponent_bits, mantissa_bits, granularity.axis, granularity.group,
                    rounding, rng);
  }
};

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

void check(const Options& o) {
  check_input(kOp, o.x);
  check_granularity(kOp, o.x, o.granularity);
  TORCH_CHECK(o.exponent_bits >= 2 && o.exponent_bits <= 8, kOp,
              ": exponent_bits must be in [2, 8], got ", o.exponent_bits);
  TORCH_CHECK(o.mantissa_bits >= 0 && o.mantissa_bits <= 23, kOp,
              ": mantissa_bits must be in [0, 23], got ", o.mantissa_bits);
  TORCH_CHECK(o.scale || (!o.granularity.axis && !o.granularity.group), kOp,
              ": axis and group need a scale");
  if (o.scale) check_scale(kOp, o.x, *o.scale, o.granularity);
  check_choice(kOp, "rounding", o.rounding, Rounding::stochastic);
  check_rng(kOp, static_cast<Rounding>(o.rounding), o.rng);
  check_format(kOp, o.x, o.format, o.granularity);
}

template <class Device>
std::tuple<Tensor, Tensor> forward(const Options& o) {
  Device::require(kOp, o.x);
  check(o);
  Tensor source = o.x.contiguous(o.format), y = at::empty_like(source);
  Tensor inside = new_bits(source, o.save_inside);
  if (o.x.numel() == 0) return {y, inside};
  auto q = quantizer_of(kOp, {.scale = o.scale}, layout_of(o.x, o.granularity, o.format),
                        Device::kSeesValues);
  Array<int64_t> random(o.rng);
  FakeFloat args = {
      .x = source.const_data_ptr(),
      .y = y.data_ptr(),
      .inside = o.save_inside ? static_cast<uint64_t*>(inside.data_ptr()) : nullptr,
      .n = o.x.numel(),
      .dtype = dtype_of(kOp, o.x),
      .quantizer = q.quantizer,
      .format = float_format(o.exponent_bits, o.mantissa_bits),
      .rounding = static_cast<Rounding>(o.rounding),
      .rng = random.data(),
  };
  Device::run(o.x, [&](const auto& where) { bitpare::fake_float(args, where); });
  return {y, inside};
}

std::tuple<Tensor, Tensor> meta(const Options& o) {
  check(o);
  return {at::empty_like(o.x, o.x.options(), o.format), new_bits(o.x, o.save_inside)};
}

Tensor run(const PublicOptions& o, bool differentiable) {
  check_input(kOp, o.x);
  Options options = {
      .x = o.x,
      .scale = o.scale,
      .exponent_bits = o.exponent_bits,
      .mantissa_bits = o.mantissa_bits,
      .granularity = o.granularity,
      .rounding = static_cast<int64_t>(parse_rounding(kOp, o.rounding)),
      .rng = o.rng,
      .save_inside = differentiable,
      .format = format_of(o.x, o.granularity),
  };
  auto run_below = [&] {
    static auto op = find_op<decltype(meta)>("bitpare::_fake_float");
    return call(op, options);
  };
  Tensor y = differentiable ? with_straight_through(o.x, options.format, run_below)
                            : std::get<0>(run_below());
  return y.contiguous(o.x.suggest_memory_format());
}

Tensor without_gradient(const PublicOptions& o) { return run(o, false); }

Tensor autograd(const PublicOptions& o) {
  if (needs_gradient(o.x)) return run(o, true);
  at::AutoDispatchBelowADInplaceOrView below;
  return run(o, false);
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
  kernels(m, "_fake_float", forward<Cpu>, forward<Cuda>, meta);
  no_derivative(m, "_fake_float");
}

}  // namespace bitpare::ops
