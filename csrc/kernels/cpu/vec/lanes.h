// The vector types, and each operation of an instruction set's file written without its
// instructions. avx512.h, avx2.h and sse2.h define the operations that they have instructions for
// and take the others from `lanes`; plain.h takes them all.
#pragma once
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

BITPARE_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

BITPARE_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

BITPARE_INLINE VecInt load_bytes(const void* p) {
  VecInt v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

namespace lanes {

// The nearest integer, ties to even. From 2^23 on every float is an integer; below, adding 2^23
// rounds at the units.
BITPARE_INLINE Vec round_even(Vec x) {
  VecInt sign = (VecInt)x & static_cast<int32_t>(0x80000000u);
  Vec magnitude = (Vec)((VecInt)x & 0x7fffffff), big = Vec{} + 0x1p23f;
  Vec rounded = (Vec)((VecInt)((magnitude + big) - big) | sign);
  return magnitude < big ? rounded : x;
}

BITPARE_INLINE Vec round_down(Vec x) {
  Vec nearest = round_even(x);
  return nearest > x ? nearest - (Vec{} + 1.0f) : nearest;
}

// The nearest integers, ties to even, of numbers within 32 bits.
BITPARE_INLINE VecInt nearest_int(Vec x) { return __builtin_convertvector(round_even(x), VecInt); }

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

// One bit for each lane, lane 0 the lowest: whether it is set (all ones, not 0), a == b, a < b.
BITPARE_INLINE uint64_t true_bits(VecInt v) {
  uint64_t bits = 0;
  for (int l = 0; l < kWidth; ++l) bits |= static_cast<uint64_t>(v[l] != 0) << l;
  return bits;
}
BITPARE_INLINE uint64_t equal_bits(Vec a, Vec b) { return true_bits(a == b); }
BITPARE_INLINE uint64_t less_bits(Vec a, Vec b) { return true_bits(a < b); }

// v where the lane's bit is set, elsewhere 0.
BITPARE_INLINE Vec keep(Vec v, uint64_t bits) {
  VecInt lane = {};
  for (int l = 0; l < kWidth; ++l) lane[l] = 1 << l;
  VecInt set = ((VecInt{} + static_cast<int32_t>(bits & 0xff)) & lane) == lane;
  return (Vec)((VecInt)v & set);
}

template <class T>
BITPARE_INLINE VecInt load_int(const T* p) {
  VecInt v = {};
  for (int l = 0; l < kWidth; ++l) v[l] = p[l];
  return v;
}

// sum + the four products of bytes of each lane; the bytes of a are unsigned. Nothing saturates.
BITPARE_INLINE VecInt dot4(VecInt sum, VecInt a, VecInt b) {
  for (int shift = 0; shift < 32; shift += 8) {
    sum += ((a >> shift) & 0xff) * ((b << (24 - shift)) >> 24);
  }
  return sum;
}

// The bytes at even and at odd places, each as 16 bits.
typedef int16_t Shorts __attribute__((vector_size(4 * kWidth)));
typedef uint16_t UnsignedShorts __attribute__((vector_size(4 * kWidth)));
struct ShortPair {
  Shorts even, odd;
};
BITPARE_INLINE ShortPair unsigned_shorts(VecInt bytes) {
  return {(Shorts)(bytes & 0x00ff00ff), (Shorts)((UnsignedShorts)bytes >> 8)};
}
BITPARE_INLINE ShortPair signed_shorts(VecInt bytes) {
  return {(Shorts)((UnsignedShorts)bytes << 8) >> 8, (Shorts)bytes >> 8};
}

// Interleaves four vectors of bytes: byte i of lane l of quads[j] is byte spread_channel(j, l) of
// t[i].
BITPARE_INLINE void spread(const VecInt* t, VecInt* quads) {
  uint8_t bytes[4][4 * kWidth];
  for (int i = 0; i < 4; ++i) __builtin_memcpy(bytes[i], t + i, sizeof bytes[i]);
  for (int j = 0; j < 4; ++j) {
    uint8_t mixed[kWidth][4];
    for (int l = 0; l < kWidth; ++l) {
      for (int i = 0; i < 4; ++i) mixed[l][i] = bytes[i][4 * j + l];
    }
    __builtin_memcpy(quads + j, mixed, sizeof mixed);
  }
}

// The lanes of kCount vectors as bytes, one vector after the other; values outside of 0 to 255
// saturate.
template <int kCount>
BITPARE_INLINE VecInt packed(const VecInt* v) {
  uint8_t bytes[4 * kWidth];
  for (int i = 0; i < 4 * kWidth; ++i) {
    int32_t x = i / kWidth < kCount ? v[i / kWidth][i % kWidth] : 0;
    bytes[i] = static_cast<uint8_t>(x < 0 ? 0 : x > 255 ? 255 : x);
  }
  return load_bytes(bytes);
}

// Each byte of v, raised to that of low and lowered to that of high.
BITPARE_INLINE VecInt clamped_bytes(VecInt v, VecInt low, VecInt high) {
  typedef uint8_t Bytes __attribute__((vector_size(4 * kWidth)));
  Bytes raised = (Bytes)v < (Bytes)low ? (Bytes)low : (Bytes)v;
  return (VecInt)(raised > (Bytes)high ? (Bytes)high : raised);
}

// Writes the first `count` bytes of v.
BITPARE_INLINE void store_bytes(void* p, VecInt v, int64_t count) {
  if (count >= 4 * kWidth) {
    __builtin_memcpy(p, &v, sizeof v);
  } else {
    __builtin_memcpy(p, &v, static_cast<uint64_t>(count));
  }
}

// Writes the first `count` lanes, which hold 0 to 255, as bytes.
BITPARE_INLINE void store_codes(uint8_t* p, VecInt v, int64_t count) {
  typedef uint8_t Narrow __attribute__((vector_size(kWidth)));
  Narrow bytes = __builtin_convertvector(v, Narrow);
  __builtin_memcpy(p, &bytes, static_cast<uint64_t>(count < kWidth ? count : kWidth));
}

}  // namespace lanes
}  // namespace
}  // namespace bitpare
