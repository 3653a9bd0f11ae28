// The state of a quantizer in training, which kernels read and write on the device, so that a
// schedule can change it without a synchronisation or a recompilation.
#pragma once
#include "math/minmax.h"

namespace bitpare {

// The elements of a `control` tensor, int32[kControlSize].
//   quant_min, quant_max: the integer grid, which changes when bits are annealed.
//   observe: 1 where statistics are taken. quantize: 0 where the values pass as they are.
//   freeze: 1 where a BatchNorm fused with the quantizer uses and keeps its running statistics.
struct Control {
  int32_t quant_min, quant_max, observe, quantize, freeze;
};
constexpr int64_t kControlSize = 5;
static_assert(sizeof(Control) == kControlSize * sizeof(int32_t));

namespace math {

// A `pending` tensor, float32[2, scales], collects (least, most) for each scale until the ranges
// are updated: (inf, -inf) before any value, NaN in both after a NaN. Merging the same values twice
// changes nothing, so a recomputed forward pass does no harm.
BITPARE_INLINE void fold_pending(float* least, float* most, const float* terms) {
  float low = limit_of(terms[0], terms[2]), high = limit_of(terms[1], terms[2]);
  float none = *least == *least ? 0.0f : *least;
  float odd = low == low ? none : low;
  float below = MinMax::combine<float>(0, *least, low),
        above = MinMax::combine<float>(1, *most, high);
  *least = odd == odd ? below : odd;
  *most = odd == odd ? above : odd;
}

}  // namespace math
}  // namespace bitpare
