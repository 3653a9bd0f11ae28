// The operations of vec.h for a processor that has no file of its own.
#pragma once
#include "kernels/cpu/vec/lanes.h"

namespace bitpare {
namespace {

using namespace lanes;

BITPARE_INLINE Vec load(const Half* p) { return widened(p); }
BITPARE_INLINE Vec load(const BFloat16* p) { return widened(p); }
BITPARE_INLINE void store(Half* p, Vec v) { store_narrow(p, v); }
BITPARE_INLINE void store(BFloat16* p, Vec v) { store_narrow(p, v); }
BITPARE_INLINE void stream(float* p, Vec v) { store(p, v); }
BITPARE_INLINE void fence() {}

BITPARE_INLINE uint64_t equal_bits(VecUint a, VecUint b) { return true_bits((VecInt)(a == b)); }
BITPARE_INLINE uint64_t less_bits(VecUint a, VecUint b) { return true_bits((VecInt)(a < b)); }

// Undoes spread(), which leaves the order of memory with four lanes, and packs.
BITPARE_INLINE VecInt gathered(const VecInt* quads) {
  static_assert(kWidth == 4);
  return packed<4>(quads);
}

}  // namespace
}  // namespace bitpare
