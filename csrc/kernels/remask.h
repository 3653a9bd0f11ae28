// Sets the masked elements of many tensors to zero in one call.
#pragma once
#include "kernels/backend.h"
#include "math/mask.h"

namespace bitpare {

// x: [n] elements of `bytes` each, 1, 2, 4 or 8, changed in place: +0 where the mask, in
// logical order, is 0. first_block: set by the kernel's launch (CUDA).
struct Masked {
  void* x;
  const uint64_t* mask;
  MaskLayout layout;
  int64_t n;
  int32_t bytes;
  int32_t first_block;
};

struct Remask {
  const Masked* tensors;
  int64_t size;
};

template <class Isa>
void remask(const Remask& args, const OnCpu<Isa>& cpu);
void remask(const Remask& args, const OnCuda& cuda);

}  // namespace bitpare
