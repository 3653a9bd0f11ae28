// The operations of vec.h in AVX2 and F16C.
#pragma once
#include <immintrin.h>

#include "kernels/cpu/vec/lanes.h"

namespace bitpare {
namespace {

using lanes::keep;
using lanes::store_bytes;
using lanes::store_codes;

BITPARE_INLINE Vec round_even(Vec x) {
  return (Vec)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
BITPARE_INLINE Vec round_down(Vec x) {
  return (Vec)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
BITPARE_INLINE VecInt nearest_int(Vec x) { return (VecInt)_mm256_cvtps_epi32((__m256)x); }

BITPARE_INLINE Vec load(const Half* p) {
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
BITPARE_INLINE Vec load(const BFloat16* p) {
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
}
BITPARE_INLINE void store(Half* p, Vec v) {
  __m128i h = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm_storeu_si128((__m128i*)p, h);
}
BITPARE_INLINE void store(BFloat16* p, Vec v) {
  VecUint u = (VecUint)v;
  VecUint rounded = (v == v ? u + 0x7fff + ((u >> 16) & 1) : u | 0x400000) >> 16;
  __m256i packed = _mm256_packus_epi32((__m256i)rounded, (__m256i)rounded);
  packed = _mm256_permute4x64_epi64(packed, 0x08);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
}
BITPARE_INLINE void stream(float* p, Vec v) { _mm256_stream_ps(p, (__m256)v); }
BITPARE_INLINE void fence() { _mm_sfence(); }

// The compiler widens 8 and 16 bits lane by lane, so these are spelled out.
BITPARE_INLINE VecInt load_int(const int8_t* p) {
  return (VecInt)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
BITPARE_INLINE VecInt load_int(const uint8_t* p) {
  return (VecInt)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
BITPARE_INLINE VecInt load_int(const int16_t* p) {
  return (VecInt)_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)p));
}

BITPARE_INLINE uint64_t true_bits(VecInt v) {
  return static_cast<uint64_t>(_mm256_movemask_ps((__m256)v));
}
BITPARE_INLINE uint64_t equal_bits(Vec a, Vec b) {
  return static_cast<uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_EQ_OQ)));
}
BITPARE_INLINE uint64_t less_bits(Vec a, Vec b) {
  return static_cast<uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ)));
}
BITPARE_INLINE uint64_t equal_bits(VecUint a, VecUint b) { return true_bits((VecInt)(a == b)); }
BITPARE_INLINE uint64_t less_bits(VecUint a, VecUint b) { return true_bits((VecInt)(a < b)); }

BITPARE_INLINE VecInt dot4(VecInt sum, VecInt a, VecInt b) {
  lanes::ShortPair x = lanes::unsigned_shorts(a), y = lanes::signed_shorts(b);
  __m256i even = _mm256_madd_epi16((__m256i)x.even, (__m256i)y.even);
  __m256i odd = _mm256_madd_epi16((__m256i)x.odd, (__m256i)y.odd);
  return sum + (VecInt)_mm256_add_epi32(even, odd);
}

BITPARE_INLINE void spread(const VecInt* t, VecInt* quads) {
  __m256i a = (__m256i)t[0], b = (__m256i)t[1], c = (__m256i)t[2], d = (__m256i)t[3];
  __m256i ab = _mm256_unpacklo_epi8(a, b), cd = _mm256_unpacklo_epi8(c, d);
  __m256i ab_high = _mm256_unpackhi_epi8(a, b), cd_high = _mm256_unpackhi_epi8(c, d);
  quads[0] = (VecInt)_mm256_unpacklo_epi16(ab, cd);
  quads[1] = (VecInt)_mm256_unpackhi_epi16(ab, cd);
  quads[2] = (VecInt)_mm256_unpacklo_epi16(ab_high, cd_high);
  quads[3] = (VecInt)_mm256_unpackhi_epi16(ab_high, cd_high);
}

template <int kCount>
BITPARE_INLINE VecInt packed(const VecInt* v) {
  const VecInt second = v[kCount > 1 ? 1 : 0], third = v[kCount > 2 ? 2 : 0];
  const VecInt fourth = v[kCount > 3 ? 3 : 0];
  __m256i low = _mm256_packs_epi32((__m256i)v[0], (__m256i)second);
  __m256i high = _mm256_packs_epi32((__m256i)third, (__m256i)fourth);
  __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return (VecInt)_mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
}

// Undoes spread(), and packs.
BITPARE_INLINE VecInt gathered(const VecInt* quads) {
  __m256i low = _mm256_packs_epi32((__m256i)quads[0], (__m256i)quads[1]);
  __m256i high = _mm256_packs_epi32((__m256i)quads[2], (__m256i)quads[3]);
  return (VecInt)_mm256_packus_epi16(low, high);
}

BITPARE_INLINE VecInt clamped_bytes(VecInt v, VecInt low, VecInt high) {
  __m256i raised = _mm256_max_epu8((__m256i)v, (__m256i)low);
  return (VecInt)_mm256_min_epu8(raised, (__m256i)high);
}

}  // namespace
}  // namespace bitpare
