// Applies a function to each code: a table, or an affine function of each channel. The result's
// pixels may be further apart than their channels, so that a concatenation is written in place.
#pragma once
#include "kernels/backend.h"
#include "math/requant.h"

namespace bitpare {

// table: [256], or null: then multiplier and offset: [channels]. Both null: a copy.
struct IntMap {
  const uint8_t* input;
  uint8_t* output;
  int64_t pixels, channels, input_step, output_step;
  const uint8_t* table;
  const float* multiplier;
  const float* offset;
  int32_t zero;
  CodeRange range;
};

template <class Isa>
void int_map(const IntMap& args, const OnCpu<Isa>& cpu);
void int_map(const IntMap& args, const OnCuda& cuda);

}  // namespace bitpare
