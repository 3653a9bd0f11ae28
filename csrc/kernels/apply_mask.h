// y = mask ? x : 0, by selection: what is masked may be NaN.
#pragma once
#include "kernels/backend.h"
#include "math/mask.h"

namespace bitpare {

// x, y: [layout.n()] of dtype; they may be the same. mask: bits in logical order.
struct ApplyMask {
  const void* x;
  void* y;
  const uint64_t* mask;
  DType dtype;
  MaskLayout layout;
};

template <class Isa>
void apply_mask(const ApplyMask& args, const OnCpu<Isa>& cpu);
void apply_mask(const ApplyMask& args, const OnCuda& cuda);

}  // namespace bitpare
