#include "kernels/quantize.h"

#include "ops/call.h"

namespace bitpare::ops {
namespace {

// The smallest integer type that holds the grid.
IntType int_type_for(int64_t quant_min, int64_t quant_max) {
  if (quant_min >= -128 && quant_max <= 127) return IntType::int8;
  if (quant_min >= 0 && quant_max <= 255) return IntType::uint8;
  if (quant_min >= -32768 && quant_max <= 32767) return IntType::int16;
  return IntType::int32;
}

constexpr std::array<at::ScalarType, 4> kScalarTypes = {at::kChar, at::kByte, at::kShort, at::kInt};

at::TensorOptions code_options(const Tensor& x, int64_t quant_min, int64_t quant_max) {
  return x.options().dtype(kScalarTypes[static_cast<size_t>(int_type_for(quant_min, quant_max))]);
}

IntType int_type_of(const Tensor& q) {
  for (size_t i = 0; i < kScalarTypes.size(); ++i) {
    if (q.scalar_type() == kScalarTypes[i]) return static_cast<IntType>(i);
  }
  TORCH_CHECK(false, "dequantize: q must be int8, uint8, int16 or int32, got ", q.scalar_type());
}

struct QuantizeOptions {
  const Tensor& x;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  int64_t quant_min, quant_max;
  Granularity granularity;

  auto fields() const {
    return std::tie(x, scale, zero_point, quant_min, quant_max, granularity.axis,
                    granularity.group);
  }
};

struct DequantizeOptions {
  const Tensor& q;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  Granularity granularity;
  std::optional<at::ScalarType> dtype;

  auto fields() const {
    return std::tie(q, scale, zero_point, granularity.axis, granularity.group, dtype);
  }
  at::ScalarType result_type() const { return dtype.value_or(at::kFloat); }
};

void check_quantize(const QuantizeOptions& o) {
  check_input("quantize", o.x);
  check_grid("quantize", o.quant_min, o.quant_max);
  check_granularity("quantize", o.x, o.granularity);
  check_scale("quantize", o.x, o.scale, o.granularity);
  check_zero_point("quantize", o.x, o.zero_point, o.granularity);
}

// Groups need a contiguous layout; the result is converted back to x's layout.
template <class Device>
Tensor quantize(const QuantizeOptions& o) {
  Device::require("quantize", o.x);
  check_quantize(o);
  at::MemoryFormat format = format_of(o.x, o.granularity);
  Tensor source = o.x.contiguous(format);
  Tensor codes = at::empty_like(source, code_options(source, o.quant_min, o.quant_max));
  if (o.x.numel() == 0) return codes.contiguous(o.x.suggest_memory_format());
  auto q = quantizer_on_grid<Device>("quantize", o, layout_of(o.x, o.granularity, format));
  int32_t saw_nan = 0;
  Quantize args = {
      .x = source.const_data_ptr(),
      .q = codes.data_ptr(),
      .n = o.x.numel(),
      .dtype = dtype_of("quantize", o.x),
      .int_type = int_type_for(o.quant_min, o.quant_max),
      .quantizer = q.quantizer,
      .saw_nan = &saw_nan,
  };
  Device::run(o.x, [&](const auto& where) { bitpare::quantize(args, where); });
  TORCH_CHECK(!saw_nan, "quantize: x holds NaN, which has no integer code");
  return codes.contiguous(o.x.suggest_memory_format());
}

Tensor quantize_meta(const QuantizeOptions& o) {
  check_quantize(o);
  return at::empty_like(o.x, code_options(o.x, o.quant_min, o.quant_max),
                        o.x.suggest_memory_format());
}

void check_dequantize(const DequantizeOptions& o) {
  int_type_of(o.q);
  check_granularity("dequantize", o.q, o.granularity);
  check_scale("dequantize", o.q, o.scale, o.granularity);
  check_zero_point("dequantize", o.q, o.zero_point, o.granularity);
  at::ScalarType dtype = o.result_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16,
              "dequantize: dtype must be float32, float16 or bfloat16, got ", dtype);
}

template <class Device>
Tensor dequantize(const DequantizeOptions& o) {
  Device::require("dequantize", o.q);
  check_dequantize(o);
  at::MemoryFormat format = format_of(o.q, o.granularity);
  Tensor codes = o.q.contiguous(format);
  Tensor y = at::empty_like(codes, codes.options().dtype(o.result_type()));
  if (o.q.numel() == 0) return y.contiguous(o.q.suggest_memory_format());
  // Codes are not clamped, so every int32 is a valid zero point.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  auto q = quantizer_of(
      "dequantize",
      {.scale = o.scale, .zero_point = o.zero_point, .quant_min = -kMost - 1, .quant_max = kMost},
      layout_of(o.q, o.granularity, format), Device::kSeesValues);
  Dequantize args = {
      .q = codes.const_data_ptr(),
      .y = y.data_ptr(),
      .n = o.q.numel(),
      .dtype = dtype_of("dequantize", y),
      .int_type = int_type_of(o.q),
      .quantizer = q.quantizer,
  };
  Device::run(o.q, [&](const auto& where) { bitpare::dequantize(args, where); });
  return y.contiguous(o.q.suggest_memory_format());
}

Tensor dequantize_meta(const DequantizeOptions& o) {
  check_dequantize(o);
  return at::empty_like(o.q, o.q.options().dtype(o.result_type()), o.q.suggest_memory_format());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "quantize(Tensor x, Tensor scale, Tensor? zero_point=None, *, int quant_min, "
      "int quant_max, int? axis=None, int? group=None) -> Tensor",
      tags());
  m.def(
      "dequantize(Tensor q, Tensor scale, Tensor? zero_point=None, *, int? axis=None, "
      "int? group=None, ScalarType? dtype=None) -> Tensor",
      tags());
  kernels(m, "quantize", quantize<Cpu>, quantize<Cuda>, quantize_meta);
  no_derivative(m, "quantize");
  kernels(m, "dequantize", dequantize<Cpu>, dequantize<Cuda>, dequantize_meta);
  no_derivative(m, "dequantize");
}

}  // namespace bitpare::ops
