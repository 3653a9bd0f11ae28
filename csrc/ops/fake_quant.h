// `_fake_quant`, which fake_quant and fake_quant_lsq call below autograd.
#pragma once
#include "ops/call.h"

namespace bitpare::ops {

// See math/fake_quant.h for `floored`, which fake_quant_lsq sets. rounding: a Rounding.
struct FakeQuantOptions {
  const Tensor& x;
  const Tensor& scale;
  const OptionalTensor& zero_point;
  int64_t quant_min, quant_max;
  Granularity granularity;
  int64_t rounding;
  const OptionalTensor& rng;
  bool floored, save_inside;
  at::MemoryFormat format;

  auto fields() const {
    return std::tie(x, scale, zero_point, quant_min, quant_max, granularity.axis, granularity.group,
                    rounding, rng, floored, save_inside, format);
  }
};

// Returns y and `inside`, both in the given layout.
std::tuple<Tensor, Tensor> fake_quant(const FakeQuantOptions& options);

}  // namespace bitpare::ops
