// Quantizes all weights of a model: their scales in one pass, their values in another.
#pragma once
#include "kernels/backend.h"
#include "math/fake_quant_weights.h"

namespace bitpare {

// x, y: [n] of dtype. scale: [scales], of which each serves n / scales neighbours.
// inside: [ceil(n / 64) + 1], straight-through bits, and last 1 where any bit of x is 0, else 0.
// widest: [2], zeros at the start: scratch of weight_scales.
// control: where observe is set, weight_scales writes the scale; where quantize is not, y = x.
struct Weight {
  const void* x;
  void* y;
  uint64_t* inside;
  float* scale;
  const Control* control;
  int32_t* widest;
  int64_t n, scales;
  DType dtype;
  int32_t first_block = 0;  // for the CUDA launch
};

// scale[c] = max |x| of its values / quant_max, as math::qparams. weight_scales uses no y, inside.
struct WeightScales {
  const Weight* weights;
  int64_t size;
  bool power_of_two;
};

// y and inside of each weight, with the scales there are; a scale that is not positive and finite
// gives NaN. widest is not used.
struct FakeQuantWeights {
  const Weight* weights;
  int64_t size;
};

template <class Isa>
void weight_scales(const WeightScales& args, const OnCpu<Isa>& cpu);
void weight_scales(const WeightScales& args, const OnCuda& cuda);

template <class Isa>
void fake_quant_weights(const FakeQuantWeights& args, const OnCpu<Isa>& cpu);
void fake_quant_weights(const FakeQuantWeights& args, const OnCuda& cuda);

// Does both. On the CPU a weight with many scales is read from memory once.
template <class Isa>
void scale_and_fake_quant_weights(const WeightScales& args, const OnCpu<Isa>& cpu);
void scale_and_fake_quant_weights(const WeightScales& args, const OnCuda& cuda);

}  // namespace bitpare
