#include "kernels/qparams.h"

#include "ops/call.h"

namespace bitpare::ops {
namespace {

using Qparams = std::tuple<Tensor, Tensor>;

struct Options {
  const Tensor& low;
  const Tensor& high;
  int64_t quant_min, quant_max;
  bool symmetric, power_of_two;

  auto fields() const { return std::tie(low, high, quant_min, quant_max, symmetric, power_of_two); }
};

void check(const Options& o) {
  const Tensor &low = o.low, &high = o.high;
  TORCH_CHECK(low.scalar_type() == at::kFloat, "qparams: min must be float32, got ",
              low.scalar_type());
  TORCH_CHECK(high.scalar_type() == at::kFloat, "qparams: max must be float32, got ",
              high.scalar_type());
  TORCH_CHECK(low.sym_sizes() == high.sym_sizes(), "qparams: max must have shape ", low.sym_sizes(),
              " like min, got ", high.sym_sizes());
  check_grid("qparams", o.quant_min, o.quant_max);
  TORCH_CHECK(!o.symmetric || o.quant_max > 0,
              "qparams: quant_max must be positive with symmetric=True, got ", o.quant_max);
}

void check_values(const Tensor& low, const Tensor& high) {
  const float *l = low.const_data_ptr<float>(), *h = high.const_data_ptr<float>();
  int64_t n = low.numel();
  for (int64_t i = 0; i < n; ++i) {
    TORCH_CHECK(l[i] <= h[i] && std::isfinite(l[i]) && std::isfinite(h[i]),
                "qparams: min and max must be finite with min <= max, got ", l[i], " and ", h[i],
                " at index ", i);
  }
}

template <class Device>
Qparams body(const Options& o) {
  Device::require("qparams", o.low);
  check(o);
  Tensor low = o.low.contiguous(), high = o.high.contiguous();
  if (Device::kSeesValues) check_values(low, high);
  Tensor scale = at::empty_like(low);
  Tensor zero_point = at::empty_like(low, low.options().dtype(at::kInt));
  QparamsFromRange args = {
      .low = low.const_data_ptr<float>(),
      .high = high.const_data_ptr<float>(),
      .scale = scale.data_ptr<float>(),
      .zero_point = zero_point.data_ptr<int32_t>(),
      .n = low.numel(),
      .rule = {.quant_min = static_cast<float>(o.quant_min),
               .quant_max = static_cast<float>(o.quant_max),
               .symmetric = o.symmetric,
               .power_of_two = o.power_of_two},
  };
  Device::run(low, [&](const auto& where) { bitpare::qparams(args, where); });
  return {scale, zero_point};
}

Qparams meta(const Options& o) {
  check(o);
  auto format = at::MemoryFormat::Contiguous;
  return {at::empty_like(o.low, o.low.options(), format),
          at::empty_like(o.low, o.low.options().dtype(at::kInt), format)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "qparams(Tensor min, Tensor max, *, int quant_min, int quant_max, bool symmetric=True, "
      "bool power_of_two=False) -> (Tensor scale, Tensor zero_point)",
      tags());
  kernels(m, "qparams", body<Cpu>, body<Cuda>, meta);
  no_gradient(m, "qparams");
}

}  // namespace bitpare::ops
