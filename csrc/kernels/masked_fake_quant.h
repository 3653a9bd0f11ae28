// Fake quantization behind a mask: y = mask ? fake_quant(x) : 0, exactly 0 whatever the grid.
#pragma once
#include "kernels/backend.h"
#include "math/fake_quant.h"
#include "math/mask.h"

namespace bitpare {

// x, y: [layout.n()] of dtype in one memory order, may alias. mask: in logical order.
// inside: bits in memory order or null: where the gradient passes. With masks_gradient that is
// where the mask keeps x and it lies in range, else wherever it lies in range.
struct MaskedFakeQuant {
  const void* x;
  const uint64_t* mask;
  void* y;
  uint64_t* inside;
  MaskLayout layout;
  DType dtype;
  Quantizer quantizer;
  bool masks_gradient;
};

template <class Isa>
void masked_fake_quant(const MaskedFakeQuant& args, const OnCpu<Isa>& cpu);
void masked_fake_quant(const MaskedFakeQuant& args, const OnCuda& cuda);

}  // namespace bitpare
