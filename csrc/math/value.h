// The value type of every formula: a template parameter V that is float, or a vector of floats
// on one CPU instruction set. Formulas use + - * / comparisons and ?: as they stand; what those
// cannot say is in Value<V>, which kernels/cpu/vec.h specialises for vectors.
//
// Formulas are always inlined and internal to their file, because the same header is compiled for
// several instruction sets: no definition may be shared between them at link time.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define BITPARE_INLINE __host__ __device__ static __forceinline__
#else
#define BITPARE_INLINE [[gnu::always_inline, maybe_unused]] static inline
#endif

namespace bitpare::math {

template <class V>
struct Value;

template <>
struct Value<float> {
  using Int = int32_t;
  using Uint = uint32_t;
  BITPARE_INLINE float rint(float x) { return __builtin_rintf(x); }
  BITPARE_INLINE float floor(float x) { return __builtin_floorf(x); }
  BITPARE_INLINE Int bits(float x) {
    Int i;
    __builtin_memcpy(&i, &x, sizeof i);
    return i;
  }
  BITPARE_INLINE float from_bits(Int i) {
    float x;
    __builtin_memcpy(&x, &i, sizeof x);
    return x;
  }
  BITPARE_INLINE Int to_int(float x) { return static_cast<Int>(x); }
  BITPARE_INLINE float to_float(Int i) { return static_cast<float>(i); }
  BITPARE_INLINE Uint high_product(Uint a, Uint b) {
    return static_cast<Uint>((static_cast<uint64_t>(a) * b) >> 32);
  }
};

// The same number in every lane.
template <class V>
BITPARE_INLINE V splat(float x) {
  return V{} + x;
}

// lo where t is below it, hi where t is above it; NaN stays NaN.
template <class V>
BITPARE_INLINE V clamp(V t, V lo, V hi) {
  V raised = t < lo ? lo : t;
  return raised > hi ? hi : raised;
}

template <class V>
BITPARE_INLINE V absolute(V x) {
  return Value<V>::from_bits(Value<V>::bits(x) & 0x7fffffff);
}

// The magnitude of `x` with the sign of `sign`.
template <class V>
BITPARE_INLINE V copy_sign(V x, V sign) {
  using Int = typename Value<V>::Int;
  Int sign_bit = Value<V>::bits(sign) & static_cast<int32_t>(0x80000000u);
  return Value<V>::from_bits((Value<V>::bits(x) & 0x7fffffff) | sign_bit);
}

}  // namespace bitpare::math
