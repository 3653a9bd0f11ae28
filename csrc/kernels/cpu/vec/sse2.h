// The operations of vec.h in SSE2, which every x86-64 has.
#pragma once
#include <immintrin.h>

#include "kernels/cpu/vec/lanes.h"

namespace bitpare {
namespace {

using lanes::keep;
using lanes::load_int;
using lanes::round_down;
using lanes::round_even;
using lanes::spread;
using lanes::store_bytes;
using lanes::store_codes;

BITPARE_INLINE VecInt nearest_int(Vec x) { return (VecInt)_mm_cvtps_epi32((__m128)x); }

BITPARE_INLINE Vec load(const Half* p) { return lanes::widened(p); }
BITPARE_INLINE Vec load(const BFloat16* p) { return lanes::widened(p); }
BITPARE_INLINE void store(Half* p, Vec v) { lanes::store_narrow(p, v); }
BITPARE_INLINE void store(BFloat16* p, Vec v) { lanes::store_narrow(p, v); }
BITPARE_INLINE void stream(float* p, Vec v) { _mm_stream_ps(p, (__m128)v); }
BITPARE_INLINE void fence() { _mm_sfence(); }

BITPARE_INLINE uint64_t true_bits(VecInt v) {
  return static_cast<uint64_t>(_mm_movemask_ps((__m128)v));
}
BITPARE_INLINE uint64_t equal_bits(Vec a, Vec b) {
  return static_cast<uint64_t>(_mm_movemask_ps(_mm_cmpeq_ps((__m128)a, (__m128)b)));
}
BITPARE_INLINE uint64_t less_bits(Vec a, Vec b) {
  return static_cast<uint64_t>(_mm_movemask_ps(_mm_cmplt_ps((__m128)a, (__m128)b)));
}
BITPARE_INLINE uint64_t equal_bits(VecUint a, VecUint b) { return true_bits((VecInt)(a == b)); }
BITPARE_INLINE uint64_t less_bits(VecUint a, VecUint b) { return true_bits((VecInt)(a < b)); }

BITPARE_INLINE VecInt dot4(VecInt sum, VecInt a, VecInt b) {
  lanes::ShortPair x = lanes::unsigned_shorts(a), y = lanes::signed_shorts(b);
  __m128i even = _mm_madd_epi16((__m128i)x.even, (__m128i)y.even);
  __m128i odd = _mm_madd_epi16((__m128i)x.odd, (__m128i)y.odd);
  return sum + (VecInt)_mm_add_epi32(even, odd);
}

template <int kCount>
BITPARE_INLINE VecInt packed(const VecInt* v) {
  const VecInt second = v[kCount > 1 ? 1 : 0], third = v[kCount > 2 ? 2 : 0];
  const VecInt fourth = v[kCount > 3 ? 3 : 0];
  __m128i low = _mm_packs_epi32((__m128i)v[0], (__m128i)second);
  __m128i high = _mm_packs_epi32((__m128i)third, (__m128i)fourth);
  return (VecInt)_mm_packus_epi16(low, high);
}

// Undoes spread(), which leaves the order of memory with four lanes, and packs.
BITPARE_INLINE VecInt gathered(const VecInt* quads) {
  static_assert(kWidth == 4);
  return packed<4>(quads);
}

BITPARE_INLINE VecInt clamped_bytes(VecInt v, VecInt low, VecInt high) {
  return (VecInt)_mm_min_epu8(_mm_max_epu8((__m128i)v, (__m128i)low), (__m128i)high);
}

}  // namespace
}  // namespace bitpare
