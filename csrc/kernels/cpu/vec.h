// The vector of floats of the instruction set this file is compiled for, and the operations on
// memory and single lanes: load, store, round, comparisons as bits. Intrinsics stand in the file of
// each instruction set alone; vec/lanes.h says what each operation does. For a new instruction set
// add a file, a line here, and its width in vec/lanes.h.
#pragma once
#if defined(__AVX512F__)
#include "kernels/cpu/vec/avx512.h"
#elif defined(__AVX2__)
#include "kernels/cpu/vec/avx2.h"
#elif defined(__SSE2__)
#include "kernels/cpu/vec/sse2.h"
#else
#include "kernels/cpu/vec/plain.h"
#endif

namespace bitpare {
namespace math {

template <>
struct Value<Vec> {
  using Int = VecInt;
  using Uint = VecUint;

  BITPARE_INLINE Vec rint(Vec x) { return round_even(x); }
  BITPARE_INLINE Vec floor(Vec x) { return round_down(x); }
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

// Integers of any width, converted to and from floats; their values fit.
BITPARE_INLINE VecInt load_int(const int32_t* p) { return load_bytes(p); }
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

// Writes past the cache where the instruction set can. p is aligned to 64 bytes; call fence()
// before another thread reads it.
template <class T>
BITPARE_INLINE void stream(T* p, Vec v) {
  store(p, v);
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

// The same four bytes in every lane.
BITPARE_INLINE VecInt repeat_quad(const uint8_t* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, sizeof quad);
  return VecInt{} + quad;
}

// The same byte in all places.
BITPARE_INLINE VecInt repeat_byte(int32_t byte) {
  return (VecInt)(VecUint{} + static_cast<uint32_t>(byte) * 0x01010101u);
}

// The place of a byte that spread() moves to lane `lane` of quads[vector].
BITPARE_INLINE constexpr int spread_channel(int vector, int lane) {
  return lane / 4 * 16 + 4 * vector + lane % 4;
}

}  // namespace
}  // namespace bitpare
