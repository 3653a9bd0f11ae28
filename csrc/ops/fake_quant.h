// `_fake_quant`, what fake_quant and fake_quant_lsq are below autograd.
#pragma once
#include "ops/call.h"

namespace bitpare::ops {

// The arguments besides x. See math/fake_quant.h for `floored`.
struct FakeQuantArguments {
  const Tensor& scale;
  const OptionalTensor& zero_point;
  int64_t quant_min, quant_max;
  Granularity granularity;
  Rounding rounding;
  const OptionalTensor& rng;
  bool floored;
};

// (y, inside), both in the given layout.
std::tuple<Tensor, Tensor> fake_quant(const Tensor& x, const FakeQuantArguments& arguments,
                                      bool save_inside, at::MemoryFormat format);

}  // namespace bitpare::ops
