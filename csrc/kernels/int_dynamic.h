// Quantizes rows of floats to bytes on dynamic grids, and back.
#pragma once
#include "kernels/backend.h"
#include "math/requant.h"

namespace bitpare {

// floats: [rows, channels], or null: then codes become floats in `result`, laid out the same.
// codes: rows of `step` bytes. scales, zeros: of the grid quant_min .. quant_max; one of each, or
// with a scale_step of 1 one for each row. A byte is a code plus `up`, and `zeros` are such bytes
// too. To bytes: rne(clamp(x, least, most) / scale) + zero, clamped.
struct IntDynamic {
  const float* floats;
  float* result;
  uint8_t* codes;
  int64_t rows, channels, step;
  const float* scales;
  const int32_t* zeros;
  int64_t scale_step;
  float quant_min, quant_max;
  int32_t up;
  float least, most;
};

template <class Isa>
void int_dynamic(const IntDynamic& args, const OnCpu<Isa>& cpu);
void int_dynamic(const IntDynamic& args, const OnCuda& cuda);

}  // namespace bitpare
