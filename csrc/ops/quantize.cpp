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

void check_quantize(const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point,
                    int64_t quant_min, int64_t quant_max, const Granularity& granularity) {
  check_input("quantize", x);
  check_grid("quantize", quant_min, quant_max);
  check_granularity("quantize", x, granularity);
  check_scale("quantize", x, scale, granularity);
  check_zero_point("quantize", x, zero_point, granularity);
}

// Groups need contiguous; the result takes x's layout back.
template <class Device>
Tensor quantize(const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point,
                int64_t quant_min, int64_t quant_max, std::optional<int64_t> axis,
                std::optional<int64_t> group) {
  Granularity granularity = {axis, group};
  Device::require("quantize", x);
  check_quantize(x, scale, zero_point, quant_min, quant_max, granularity);
  at::MemoryFormat format = format_of(x, granularity);
  Tensor source = x.contiguous(format);
  Tensor q = at::empty_like(source, code_options(source, quant_min, quant_max));
  if (x.numel() == 0) return q.contiguous(x.suggest_memory_format());
  auto quantizer = quantizer_of("quantize", scale, zero_point, quant_min, quant_max,
                                layout_of(x, granularity, format), false, Device::kSeesValues);
  int32_t saw_nan = 0;
  Quantize args = {source.const_data_ptr(),
                   q.data_ptr(),
                   x.numel(),
                   dtype_of("quantize", x),
                   int_type_for(quant_min, quant_max),
                   quantizer.quantizer,
                   &saw_nan};
  Device::run(x, [&](const auto& where) { bitpare::quantize(args, where); });
  TORCH_CHECK(!saw_nan, "quantize: x holds NaN, which no integer stands for");
  return q.contiguous(x.suggest_memory_format());
}

Tensor quantize_meta(const Tensor& x, const Tensor& scale, const OptionalTensor& zero_point,
                     int64_t quant_min, int64_t quant_max, std::optional<int64_t> axis,
                     std::optional<int64_t> group) {
  check_quantize(x, scale, zero_point, quant_min, quant_max, {axis, group});
  return at::empty_like(x, code_options(x, quant_min, quant_max), x.suggest_memory_format());
}

void check_dequantize(const Tensor& q, const Tensor& scale, const OptionalTensor& zero_point,
                      const Granularity& granularity, at::ScalarType dtype) {
  int_type_of(q);
  check_granularity("dequantize", q, granularity);
  check_scale("dequantize", q, scale, granularity);
  check_zero_point("dequantize", q, zero_point, granularity);
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16,
              "dequantize: dtype must be float32, float16 or bfloat16, got ", dtype);
}

template <class Device>
Tensor dequantize(const Tensor& q, const Tensor& scale, const OptionalTensor& zero_point,
                  std::optional<int64_t> axis, std::optional<int64_t> group,
                  std::optional<at::ScalarType> dtype) {
  Granularity granularity = {axis, group};
  at::ScalarType out = dtype.value_or(at::kFloat);
  Device::require("dequantize", q);
  check_dequantize(q, scale, zero_point, granularity, out);
  at::MemoryFormat format = format_of(q, granularity);
  Tensor source = q.contiguous(format), y = at::empty_like(source, source.options().dtype(out));
  if (q.numel() == 0) return y.contiguous(q.suggest_memory_format());
  // Codes are taken as they are, so any zero point is one of a grid.
  constexpr int64_t kAny = std::numeric_limits<int32_t>::max();
  auto quantizer = quantizer_of("dequantize", scale, zero_point, -kAny - 1, kAny,
                                layout_of(q, granularity, format), false, Device::kSeesValues);
  Dequantize args = {source.const_data_ptr(),   y.data_ptr(),   q.numel(),
                     dtype_of("dequantize", y), int_type_of(q), quantizer.quantizer};
  Device::run(q, [&](const auto& where) { bitpare::dequantize(args, where); });
  return y.contiguous(q.suggest_memory_format());
}

Tensor dequantize_meta(const Tensor& q, const Tensor& scale, const OptionalTensor& zero_point,
                       std::optional<int64_t> axis, std::optional<int64_t> group,
                       std::optional<at::ScalarType> dtype) {
  at::ScalarType out = dtype.value_or(at::kFloat);
  check_dequantize(q, scale, zero_point, {axis, group}, out);
  return at::empty_like(q, q.options().dtype(out), q.suggest_memory_format());
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
