// The straight-through gradient: dy where the value was in range, else 0.
//   dx[i] = inside[i] ? dy[i] : 0
#pragma once
#include "kernels/backend.h"

namespace bitpare {

// dy, dx: [n] of dtype, may alias. inside: [ceil(n / 64)], bit i % 64 of word i / 64.
struct StraightThrough {
  const void* dy;
  const uint64_t* inside;
  void* dx;
  int64_t n;
  DType dtype;
};

template <class Isa>
void straight_through(const StraightThrough& args, const OnCpu<Isa>& cpu);
void straight_through(const StraightThrough& args, const OnCuda& cuda);

}  // namespace bitpare
