// The bits of a packed mask in the order of memory.
#pragma once
#include "kernels/cuda/blocks.h"
#include "math/mask.h"

namespace bitpare {
namespace {

// Returns the bits of up to eight neighbours from `first` on, of n; first is a multiple of 8.
BITPARE_INLINE uint32_t mask_bits(const uint64_t* mask, const MaskLayout& l, int64_t first,
                                  int64_t n) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(mask);
  if (math::in_logical_order(l)) return bytes[first / 8];
  auto walk = math::MaskWalk::from(l, first);
  uint32_t bits = 0;
  for (int e = 0; e < kPerThread && first + e < n; ++e) {
    bits |= static_cast<uint32_t>(bytes[walk.bit / 8] >> (walk.bit % 8) & 1) << e;
    math::MaskWalk::next(l, &walk);
  }
  return bits;
}

}  // namespace
}  // namespace bitpare
