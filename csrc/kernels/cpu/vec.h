// The vector of floats of the instruction set this file is compiled for, and what touches memory
// or single lanes: load, store, round, packed comparison bits. The only file with intrinsics.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "math/half.h"
#include "math/value.h"

namespace bitpare {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t VecInt __attribute__((vector_size(4 * kWidth)));
typedef uint32_t VecUint __attribute__((vector_size(4 * kWidth)));

}  // namespace

namespace math {

template <>
struct Value<Vec> {
  using Int = VecInt;
  using Uint = VecUint;

  BITPARE_INLINE Vec rint(Vec x) {
#if defined(__AVX512F__)
    return (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (Vec)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    // Above 2^23 every float is whole; below, adding 2^23 rounds at the units.
    Vec magnitude = absolute(x), big = splat<Vec>(0x1p23f);
    Vec rounded = copy_sign((magnitude + big) - big, x);
    return magnitude < big ? rounded : x;
#endif
  }

  BITPARE_INLINE Vec floor(Vec x) {
#if defined(__AVX512F__)
    return (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (Vec)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    Vec nearest = rint(x);
    return nearest > x ? nearest - splat<Vec>(1.0f) : nearest;
#endif
  }

  BITPARE_INLINE VecInt bits(Vec x) { return (VecInt)x; }
  BITPARE_INLINE Vec from_bits(VecInt i) { return (Vec)i; }
  BITPARE_INLINE VecInt to_int(Vec x) { return __builtin_convertvector(x, VecInt); }
  BITPARE_INLINE Vec to_float(VecInt i) { return __builtin_convertvector(i, Vec); }

  BITPARE_INLINE VecUint high_product(VecUint a, VecUint b) {
    typedef uint64_t Pairs __attribute__((vector_size(4 * kWidth)));
    Pairs low = Pairs{} + 0xffffffffu;
    Pairs even = ((Pairs)a & low) * ((Pairs)b & low);
    Pairs odd = ((Pairs)a >> 32) * ((Pairs)b >> 32);
    return (VecUint)((even >> 32) | (odd & ~low));
  }
};

}  // namespace math

namespace {

BITPARE_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

BITPARE_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

#if defined(__AVX512F__)
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
// Past the cache. p is aligned to 64 bytes; fence() before others may read it.
BITPARE_INLINE void stream(Half* p, Vec v) { _mm256_stream_si256((__m256i*)p, narrowed(p, v)); }
BITPARE_INLINE void stream(BFloat16* p, Vec v) { _mm256_stream_si256((__m256i*)p, narrowed(p, v)); }
BITPARE_INLINE void stream(float* p, Vec v) { _mm512_stream_ps(p, (__m512)v); }

BITPARE_INLINE uint64_t equal_bits(Vec a, Vec b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ);
}
BITPARE_INLINE uint64_t less_bits(Vec a, Vec b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
}
// Takes lanes that are all ones or 0.
BITPARE_INLINE uint64_t true_bits(VecInt lanes) { return _mm512_movepi32_mask((__m512i)lanes); }
BITPARE_INLINE uint64_t equal_bits(VecUint a, VecUint b) {
  return _mm512_cmpeq_epu32_mask((__m512i)a, (__m512i)b);
}
BITPARE_INLINE uint64_t less_bits(VecUint a, VecUint b) {
  return _mm512_cmplt_epu32_mask((__m512i)a, (__m512i)b);
}
// v where the lane's bit is set, elsewhere 0.
BITPARE_INLINE Vec keep(Vec v, uint64_t bits) {
  return (Vec)_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), (__m512)v);
}
#else

template <class T>
BITPARE_INLINE Vec widened(const T* p) {
  float wide[kWidth];
  for (int l = 0; l < kWidth; ++l) wide[l] = math::widen(p[l]);
  return load(wide);
}
template <class T>
BITPARE_INLINE void store_narrow(T* p, Vec v) {
  for (int l = 0; l < kWidth; ++l) math::narrow(v[l], p + l);
}

#if defined(__AVX2__)
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
#else
BITPARE_INLINE Vec load(const Half* p) { return widened(p); }
BITPARE_INLINE Vec load(const BFloat16* p) { return widened(p); }
BITPARE_INLINE void store(Half* p, Vec v) { store_narrow(p, v); }
BITPARE_INLINE void store(BFloat16* p, Vec v) { store_narrow(p, v); }
#if defined(__SSE__)
BITPARE_INLINE void stream(float* p, Vec v) { _mm_stream_ps(p, (__m128)v); }
#else
BITPARE_INLINE void stream(float* p, Vec v) { store(p, v); }
#endif
#endif

BITPARE_INLINE void stream(Half* p, Vec v) { store(p, v); }
BITPARE_INLINE void stream(BFloat16* p, Vec v) { store(p, v); }

BITPARE_INLINE uint64_t equal_bits(Vec a, Vec b) {
#if defined(__AVX2__)
  return static_cast<uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_EQ_OQ)));
#elif defined(__SSE__)
  return static_cast<uint64_t>(_mm_movemask_ps(_mm_cmpeq_ps((__m128)a, (__m128)b)));
#else
  uint64_t bits = 0;
  for (int l = 0; l < kWidth; ++l) bits |= static_cast<uint64_t>(a[l] == b[l]) << l;
  return bits;
#endif
}

BITPARE_INLINE uint64_t less_bits(Vec a, Vec b) {
#if defined(__AVX2__)
  return static_cast<uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ)));
#elif defined(__SSE__)
  return static_cast<uint64_t>(_mm_movemask_ps(_mm_cmplt_ps((__m128)a, (__m128)b)));
#else
  uint64_t bits = 0;
  for (int l = 0; l < kWidth; ++l) bits |= static_cast<uint64_t>(a[l] < b[l]) << l;
  return bits;
#endif
}

BITPARE_INLINE uint64_t true_bits(VecInt lanes) {
#if defined(__AVX2__)
  return static_cast<uint64_t>(_mm256_movemask_ps((__m256)lanes));
#elif defined(__SSE__)
  return static_cast<uint64_t>(_mm_movemask_ps((__m128)lanes));
#else
  uint64_t bits = 0;
  for (int l = 0; l < kWidth; ++l) bits |= static_cast<uint64_t>(lanes[l] != 0) << l;
  return bits;
#endif
}

BITPARE_INLINE uint64_t equal_bits(VecUint a, VecUint b) { return true_bits((VecInt)(a == b)); }
BITPARE_INLINE uint64_t less_bits(VecUint a, VecUint b) { return true_bits((VecInt)(a < b)); }

BITPARE_INLINE Vec keep(Vec v, uint64_t bits) {
#if defined(__AVX2__)
  VecInt lane = {1, 2, 4, 8, 16, 32, 64, 128};
#else
  VecInt lane = {1, 2, 4, 8};
#endif
  VecInt set = ((VecInt{} + static_cast<int32_t>(bits & 0xff)) & lane) == lane;
  return (Vec)((VecInt)v & set);
}
#endif

#if defined(__SSE__)
BITPARE_INLINE void fence() { _mm_sfence(); }
#else
BITPARE_INLINE void fence() {}
#endif

// Integers of any width, in and out of the lanes. Values are in range. The compiler widens 8 and 16
// bits lane by lane, so those are spelled out.
BITPARE_INLINE VecInt load_int(const int32_t* p) {
  VecInt v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
#if defined(__AVX512F__)
BITPARE_INLINE VecInt load_int(const int8_t* p) {
  return (VecInt)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
}
BITPARE_INLINE VecInt load_int(const uint8_t* p) {
  return (VecInt)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
BITPARE_INLINE VecInt load_int(const int16_t* p) {
  return (VecInt)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)p));
}
#elif defined(__AVX2__)
BITPARE_INLINE VecInt load_int(const int8_t* p) {
  return (VecInt)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
BITPARE_INLINE VecInt load_int(const uint8_t* p) {
  return (VecInt)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
BITPARE_INLINE VecInt load_int(const int16_t* p) {
  return (VecInt)_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)p));
}
#else
template <class T>
BITPARE_INLINE VecInt load_int(const T* p) {
  VecInt v = {};
  for (int l = 0; l < kWidth; ++l) v[l] = p[l];
  return v;
}
#endif
template <class T>
BITPARE_INLINE Vec load(const T* p) {
  return __builtin_convertvector(load_int(p), Vec);
}
template <class T>
BITPARE_INLINE void store(T* p, Vec v) {
  typedef T Narrow __attribute__((vector_size(sizeof(T) * kWidth)));
  Narrow n = __builtin_convertvector(__builtin_convertvector(v, VecInt), Narrow);
  __builtin_memcpy(p, &n, sizeof n);
}
template <class T>
BITPARE_INLINE void stream(T* p, Vec v) {
  store(p, v);
}

// -- bytes: a vector of 32-bit lanes seen as 4 bytes each

BITPARE_INLINE VecInt load_bytes(const void* p) {
  VecInt v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// Four bytes, in every lane.
BITPARE_INLINE VecInt repeat_quad(const uint8_t* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, sizeof quad);
  return VecInt{} + quad;
}

// sum + the products of each lane's four bytes, those of a without a sign. Nothing saturates.
BITPARE_INLINE VecInt dot4(VecInt sum, VecInt a, VecInt b) {
#if defined(__AVX512VNNI__)
  return (VecInt)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__SSE2__)
  typedef int16_t Shorts __attribute__((vector_size(4 * kWidth)));
  typedef uint16_t UnsignedShorts __attribute__((vector_size(4 * kWidth)));
  Shorts even = (Shorts)(a & 0x00ff00ff), odd = (Shorts)((UnsignedShorts)a >> 8);
  Shorts even_b = (Shorts)((UnsignedShorts)b << 8) >> 8, odd_b = (Shorts)b >> 8;
#if defined(__AVX512F__)
  __m512i pairs = _mm512_add_epi32(_mm512_madd_epi16((__m512i)even, (__m512i)even_b),
                                   _mm512_madd_epi16((__m512i)odd, (__m512i)odd_b));
#elif defined(__AVX2__)
  __m256i pairs = _mm256_add_epi32(_mm256_madd_epi16((__m256i)even, (__m256i)even_b),
                                   _mm256_madd_epi16((__m256i)odd, (__m256i)odd_b));
#else
  __m128i pairs = _mm_add_epi32(_mm_madd_epi16((__m128i)even, (__m128i)even_b),
                                _mm_madd_epi16((__m128i)odd, (__m128i)odd_b));
#endif
  return sum + (VecInt)pairs;
#else
  for (int shift = 0; shift < 32; shift += 8) {
    sum += ((a >> shift) & 0xff) * ((b << (24 - shift)) >> 24);
  }
  return sum;
#endif
}

// Four vectors of bytes, of which lane l of the result's vector j has one byte each: byte
// spread_channel(j, l) of t[0], t[1], t[2], t[3].
BITPARE_INLINE void spread(const VecInt* t, VecInt* quads) {
#if defined(__AVX512F__)
  __m512i a = (__m512i)t[0], b = (__m512i)t[1], c = (__m512i)t[2], d = (__m512i)t[3];
  __m512i ab = _mm512_unpacklo_epi8(a, b), cd = _mm512_unpacklo_epi8(c, d);
  __m512i ab_high = _mm512_unpackhi_epi8(a, b), cd_high = _mm512_unpackhi_epi8(c, d);
  quads[0] = (VecInt)_mm512_unpacklo_epi16(ab, cd);
  quads[1] = (VecInt)_mm512_unpackhi_epi16(ab, cd);
  quads[2] = (VecInt)_mm512_unpacklo_epi16(ab_high, cd_high);
  quads[3] = (VecInt)_mm512_unpackhi_epi16(ab_high, cd_high);
#elif defined(__AVX2__)
  __m256i a = (__m256i)t[0], b = (__m256i)t[1], c = (__m256i)t[2], d = (__m256i)t[3];
  __m256i ab = _mm256_unpacklo_epi8(a, b), cd = _mm256_unpacklo_epi8(c, d);
  __m256i ab_high = _mm256_unpackhi_epi8(a, b), cd_high = _mm256_unpackhi_epi8(c, d);
  quads[0] = (VecInt)_mm256_unpacklo_epi16(ab, cd);
  quads[1] = (VecInt)_mm256_unpackhi_epi16(ab, cd);
  quads[2] = (VecInt)_mm256_unpacklo_epi16(ab_high, cd_high);
  quads[3] = (VecInt)_mm256_unpackhi_epi16(ab_high, cd_high);
#else
  uint8_t bytes[4][4 * kWidth];
  for (int i = 0; i < 4; ++i) __builtin_memcpy(bytes[i], t + i, sizeof bytes[i]);
  for (int j = 0; j < 4; ++j) {
    uint8_t mixed[kWidth][4];
    for (int l = 0; l < kWidth; ++l) {
      for (int i = 0; i < 4; ++i) mixed[l][i] = bytes[i][4 * j + l];
    }
    __builtin_memcpy(quads + j, mixed, sizeof mixed);
  }
#endif
}

BITPARE_INLINE constexpr int spread_channel(int vector, int lane) {
  return lane / 4 * 16 + 4 * vector + lane % 4;
}

// The bytes of kCount vectors, one after the other; what is outside of 0 to 255 saturates.
template <int kCount>
BITPARE_INLINE VecInt packed(const VecInt* v) {
  const VecInt second = v[kCount > 1 ? 1 : 0], third = v[kCount > 2 ? 2 : 0];
  const VecInt fourth = v[kCount > 3 ? 3 : 0];
#if defined(__AVX512F__)
  __m512i low = _mm512_packs_epi32((__m512i)v[0], (__m512i)second);
  __m512i high = kCount > 2 ? _mm512_packs_epi32((__m512i)third, (__m512i)fourth) : low;
  __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return (VecInt)_mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
#elif defined(__AVX2__)
  __m256i low = _mm256_packs_epi32((__m256i)v[0], (__m256i)second);
  __m256i high = _mm256_packs_epi32((__m256i)third, (__m256i)fourth);
  __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return (VecInt)_mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
#elif defined(__SSE2__)
  __m128i low = _mm_packs_epi32((__m128i)v[0], (__m128i)second);
  __m128i high = _mm_packs_epi32((__m128i)third, (__m128i)fourth);
  return (VecInt)_mm_packus_epi16(low, high);
#else
  uint8_t bytes[4 * kWidth];
  for (int i = 0; i < 4 * kWidth; ++i) {
    int32_t x = i / kWidth < kCount ? v[i / kWidth][i % kWidth] : 0;
    bytes[i] = static_cast<uint8_t>(x < 0 ? 0 : x > 255 ? 255 : x);
  }
  return load_bytes(bytes);
#endif
}

// The bytes of four vectors that stand as spread() left them; what is outside of 0 to 255
// saturates.
BITPARE_INLINE VecInt gathered(const VecInt* quads) {
#if defined(__AVX512F__)
  __m512i low = _mm512_packs_epi32((__m512i)quads[0], (__m512i)quads[1]);
  __m512i high = _mm512_packs_epi32((__m512i)quads[2], (__m512i)quads[3]);
  return (VecInt)_mm512_packus_epi16(low, high);
#elif defined(__AVX2__)
  __m256i low = _mm256_packs_epi32((__m256i)quads[0], (__m256i)quads[1]);
  __m256i high = _mm256_packs_epi32((__m256i)quads[2], (__m256i)quads[3]);
  return (VecInt)_mm256_packus_epi16(low, high);
#else
  static_assert(kWidth == 4);  // where the order is that of memory
  return packed<4>(quads);
#endif
}

// Each byte of v, at least that of low and at most that of high.
BITPARE_INLINE VecInt clamped_bytes(VecInt v, VecInt low, VecInt high) {
#if defined(__AVX512F__)
  __m512i raised = _mm512_max_epu8((__m512i)v, (__m512i)low);
  return (VecInt)_mm512_min_epu8(raised, (__m512i)high);
#elif defined(__AVX2__)
  __m256i raised = _mm256_max_epu8((__m256i)v, (__m256i)low);
  return (VecInt)_mm256_min_epu8(raised, (__m256i)high);
#elif defined(__SSE2__)
  return (VecInt)_mm_min_epu8(_mm_max_epu8((__m128i)v, (__m128i)low), (__m128i)high);
#else
  typedef uint8_t Bytes __attribute__((vector_size(4 * kWidth)));
  Bytes raised = (Bytes)v < (Bytes)low ? (Bytes)low : (Bytes)v;
  return (VecInt)(raised > (Bytes)high ? (Bytes)high : raised);
#endif
}

// A byte in all places.
BITPARE_INLINE VecInt repeat_byte(int32_t byte) {
  return (VecInt)(VecUint{} + static_cast<uint32_t>(byte) * 0x01010101u);
}

// The nearest integers, ties to even, of what is within 32 bits.
BITPARE_INLINE VecInt nearest_int(Vec x) {
#if defined(__AVX512F__)
  return (VecInt)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (VecInt)_mm256_cvtps_epi32((__m256)x);
#elif defined(__SSE2__)
  return (VecInt)_mm_cvtps_epi32((__m128)x);
#else
  return math::Value<Vec>::to_int(math::Value<Vec>::rint(x));
#endif
}

BITPARE_INLINE void store_bytes(void* p, VecInt v, int64_t count) {
#if defined(__AVX512F__)
  if (count < 4 * kWidth) {
    __mmask64 some = (uint64_t{1} << count) - 1;
    return _mm512_mask_storeu_epi8(p, some, (__m512i)v);
  }
#endif
  if (count >= 4 * kWidth) {
    __builtin_memcpy(p, &v, sizeof v);
  } else {
    __builtin_memcpy(p, &v, static_cast<uint64_t>(count));
  }
}

// Codes 0 to 255, one in each lane, as bytes.
BITPARE_INLINE void store_codes(uint8_t* p, VecInt v, int64_t count) {
#if defined(__AVX512F__)
  __m128i bytes = _mm512_cvtepi32_epi8((__m512i)v);
  if (count >= kWidth) {
    _mm_storeu_si128((__m128i*)p, bytes);
  } else {
    _mm_mask_storeu_epi8(p, static_cast<__mmask16>((1u << count) - 1), bytes);
  }
#else
  typedef uint8_t Narrow __attribute__((vector_size(kWidth)));
  Narrow bytes = __builtin_convertvector(v, Narrow);
  __builtin_memcpy(p, &bytes, static_cast<uint64_t>(count < kWidth ? count : kWidth));
#endif
}

// Lanes 0 .. kWidth - 1.
BITPARE_INLINE VecInt lane_numbers() {
  VecInt lane = {};
  for (int l = 0; l < kWidth; ++l) lane[l] = l;
  return lane;
}

// Lane l is lane order[l] of v.
template <class V>
BITPARE_INLINE V shuffled(V v, VecInt order) {
#if defined(__clang__)
  V moved;
  for (int l = 0; l < kWidth; ++l) moved[l] = v[order[l]];
  return moved;
#else
  return __builtin_shuffle(v, order);
#endif
}

// The first `count` elements, 0 < count < kWidth; other lanes are 0.
template <class T>
BITPARE_INLINE Vec load_some(const T* p, int64_t count) {
  T whole[kWidth] = {};
  __builtin_memcpy(whole, p, static_cast<uint64_t>(count) * sizeof(T));
  return load(whole);
}

template <class T>
BITPARE_INLINE void store_some(T* p, Vec v, int64_t count) {
  T whole[kWidth];
  store(whole, v);
  __builtin_memcpy(p, whole, static_cast<uint64_t>(count) * sizeof(T));
}

}  // namespace
}  // namespace bitpare
