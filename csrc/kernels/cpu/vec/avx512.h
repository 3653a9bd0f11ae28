// The operations of vec.h in AVX-512 F, BW, DQ and VL, with VNNI where it is compiled in.
#pragma once
#include <immintrin.h>

#include "kernels/cpu/vec/lanes.h"

namespace bitpare {
namespace {

BITPARE_INLINE Vec round_even(Vec x) {
  return (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
BITPARE_INLINE Vec round_down(Vec x) {
  return (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
BITPARE_INLINE VecInt nearest_int(Vec x) { return (VecInt)_mm512_cvtps_epi32((__m512)x); }

BITPARE_INLINE Vec load(const Half* p) {
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
BITPARE_INLINE Vec load(const BFloat16* p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return (Vec)_mm512_slli_epi32(wide, 16);
}
BITPARE_INLINE __m256i narrowed(const Half*, Vec v) {
  return _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
BITPARE_INLINE __m256i narrowed(const BFloat16*, Vec v) {
  VecUint u = (VecUint)v;
  VecUint rounded = v == v ? u + 0x7fff + ((u >> 16) & 1) : u | 0x400000;
  return _mm512_cvtepi32_epi16((__m512i)(rounded >> 16));
}
BITPARE_INLINE void store(Half* p, Vec v) { _mm256_storeu_si256((__m256i*)p, narrowed(p, v)); }
BITPARE_INLINE void store(BFloat16* p, Vec v) { _mm256_storeu_si256((__m256i*)p, narrowed(p, v)); }
BITPARE_INLINE void stream(Half* p, Vec v) { _mm256_stream_si256((__m256i*)p, narrowed(p, v)); }
BITPARE_INLINE void stream(BFloat16* p, Vec v) { _mm256_stream_si256((__m256i*)p, narrowed(p, v)); }
BITPARE_INLINE void stream(float* p, Vec v) { _mm512_stream_ps(p, (__m512)v); }
BITPARE_INLINE void fence() { _mm_sfence(); }

// The compiler widens 8 and 16 bits lane by lane, so these are spelled out.
BITPARE_INLINE VecInt load_int(const int8_t* p) {
  return (VecInt)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
}
BITPARE_INLINE VecInt load_int(const uint8_t* p) {
  return (VecInt)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
BITPARE_INLINE VecInt load_int(const int16_t* p) {
  return (VecInt)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)p));
}

BITPARE_INLINE uint64_t true_bits(VecInt v) { return _mm512_movepi32_mask((__m512i)v); }
BITPARE_INLINE uint64_t equal_bits(Vec a, Vec b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ);
}
BITPARE_INLINE uint64_t less_bits(Vec a, Vec b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
}
BITPARE_INLINE uint64_t equal_bits(VecUint a, VecUint b) {
  return _mm512_cmpeq_epu32_mask((__m512i)a, (__m512i)b);
}
BITPARE_INLINE uint64_t less_bits(VecUint a, VecUint b) {
  return _mm512_cmplt_epu32_mask((__m512i)a, (__m512i)b);
}
BITPARE_INLINE Vec keep(Vec v, uint64_t bits) {
  return (Vec)_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), (__m512)v);
}

BITPARE_INLINE VecInt dot4(VecInt sum, VecInt a, VecInt b) {
#if defined(__AVX512VNNI__)
  return (VecInt)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
  lanes::ShortPair x = lanes::unsigned_shorts(a), y = lanes::signed_shorts(b);
  __m512i even = _mm512_madd_epi16((__m512i)x.even, (__m512i)y.even);
  __m512i odd = _mm512_madd_epi16((__m512i)x.odd, (__m512i)y.odd);
  return sum + (VecInt)_mm512_add_epi32(even, odd);
#endif
}

BITPARE_INLINE void spread(const VecInt* t, VecInt* quads) {
  __m512i a = (__m512i)t[0], b = (__m512i)t[1], c = (__m512i)t[2], d = (__m512i)t[3];
  __m512i ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
  __m512i ab_high = _mm512_unpackhi_epi8(a, b), cd_high = _mm512_unpackhi_epi8(c, d);
  quads[0] = (VecInt)_mm512_unpacklo_epi16(ab, cd);
  quads[1] = (VecInt)_mm512_unpackhi_epi16(ab, cd);
  quads[2] = (VecInt)_mm512_unpacklo_epi16(ab_high, cd_high);
  quads[3] = (VecInt)_mm512_unpackhi_epi16(ab_high, cd_high);
}

template <int kCount>
BITPARE_INLINE VecInt packed(const VecInt* v) {
  const VecInt second = v[kCount > 1 ? 1 : 0], third = v[kCount > 2 ? 2 : 0];
  const VecInt fourth = v[kCount > 3 ? 3 : 0];
  __m512i low = _mm512_packs_epi32((__m512i)v[0], (__m512i)second);
  __m512i high = kCount > 2 ? _mm512_packs_epi32((__m512i)third, (__m512i)fourth) : low;
  __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return (VecInt)_mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
}

// Undoes spread(), and packs.
BITPARE_INLINE VecInt gathered(const VecInt* quads) {
  __m512i low = _mm512_packs_epi32((__m512i)quads[0], (__m512i)quads[1]);
  __m512i high = _mm512_packs_epi32((__m512i)quads[2], (__m512i)quads[3]);
  return (VecInt)_mm512_packus_epi16(low, high);
}

BITPARE_INLINE VecInt clamped_bytes(VecInt v, VecInt low, VecInt high) {
  __m512i raised = _mm512_max_epu8((__m512i)v, (__m512i)low);
  return (VecInt)_mm512_min_epu8(raised, (__m512i)high);
}

BITPARE_INLINE void store_bytes(void* p, VecInt v, int64_t count) {
  if (count < 4 * kWidth) {
    __mmask64 some = (uint64_t{1} << count) - 1;
    return _mm512_mask_storeu_epi8(p, some, (__m512i)v);
  }
  __builtin_memcpy(p, &v, sizeof v);
}

BITPARE_INLINE void store_codes(uint8_t* p, VecInt v, int64_t count) {
  __m128i bytes = _mm512_cvtepi32_epi8((__m512i)v);
  if (count >= kWidth) {
    _mm_storeu_si128((__m128i*)p, bytes);
  } else {
    _mm_mask_storeu_epi8(p, static_cast<__mmask16>((1u << count) - 1), bytes);
  }
}

}  // namespace
}  // namespace bitpare
