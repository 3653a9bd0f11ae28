// The workspace of mse_range: the grids of the candidates.
#pragma once
#include "math/reduce.h"

namespace bitpare::layout {

struct MseGrids {
  float* scale;         // [steps, channels]
  float* inverse;       // [steps, channels]
  float* zero_point;    // [steps, channels]
  float* inverse_unit;  // [channels]
};

BITPARE_INLINE int64_t mse_floats(int64_t steps, int64_t channels) {
  return (3 * steps + 1) * channels;
}

BITPARE_INLINE MseGrids mse_grids(float* scratch, int64_t steps, int64_t channels) {
  int64_t part = steps * channels;
  return {scratch, scratch + part, scratch + 2 * part, scratch + 3 * part};
}

}  // namespace bitpare::layout
