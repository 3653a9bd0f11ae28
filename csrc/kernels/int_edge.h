// The inputs and outputs of an integer model: converts floats to bytes, and back. Floats may have
// any layout of pixels and channels; bytes have their channels innermost.
#pragma once
#include "kernels/backend.h"
#include "math/requant.h"

namespace bitpare {

// floats: [images, pixels, channels], with steps in elements. codes: pixels of `step` bytes.
// To bytes: rne(x / scale) + zero, clamped; a NaN becomes the zero point and, on the CPU, sets
// *nan.
struct IntEdge {
  const float* floats;
  float* result;  // of bytes to floats
  uint8_t* codes;
  int64_t images, pixels, channels;
  int64_t image_step, pixel_step, channel_step;  // of the floats
  int64_t step;
  float scale;
  CodeRange range;
  bool* nan;
};

template <class Isa>
void int_edge(const IntEdge& args, const OnCpu<Isa>& cpu);
void int_edge(const IntEdge& args, const OnCuda& cuda);

}  // namespace bitpare
