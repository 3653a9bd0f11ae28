// The sum or product of two tensors of bytes.
#pragma once
#include "kernels/backend.h"
#include "math/requant.h"

namespace bitpare {

// Pixels of `channels` bytes, each tensor with a step of its own. Each pixel of the second goes
// with `repeat` of the first: 1, or all of an image's, as in a squeeze-excite.
struct IntPair {
  const uint8_t* first;
  const uint8_t* second;
  uint8_t* output;
  int64_t pixels, channels, first_step, second_step, output_step;
  int64_t repeat;
  Pairing pairing;
  CodeRange range;
};

template <class Isa>
void int_pair(const IntPair& args, const OnCpu<Isa>& cpu);
void int_pair(const IntPair& args, const OnCuda& cuda);

}  // namespace bitpare
