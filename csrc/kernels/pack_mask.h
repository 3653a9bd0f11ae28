// Converts masks between one byte and one bit for each element: bit i % 64 of word i / 64.
#pragma once
#include "kernels/backend.h"

namespace bitpare {

// kept: [n], 0 or 1. mask: [ceil(n / 64)]; the bits past n are 0.
struct PackMask {
  const uint8_t* kept;
  uint64_t* mask;
  int64_t n;
};

struct UnpackMask {
  const uint64_t* mask;
  uint8_t* kept;
  int64_t n;
};

template <class Isa>
void pack_mask(const PackMask& args, const OnCpu<Isa>& cpu);
void pack_mask(const PackMask& args, const OnCuda& cuda);

template <class Isa>
void unpack_mask(const UnpackMask& args, const OnCpu<Isa>& cpu);
void unpack_mask(const UnpackMask& args, const OnCuda& cuda);

}  // namespace bitpare
