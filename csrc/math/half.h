// fp16 and bf16 as 16 bits, rounded to nearest even on the way in.
#pragma once
#include "math/value.h"
#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace bitpare {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace math {

BITPARE_INLINE float widen(float x) { return x; }

BITPARE_INLINE float widen(BFloat16 x) {
  return Value<float>::from_bits(static_cast<int32_t>(static_cast<uint32_t>(x.bits) << 16));
}

BITPARE_INLINE float widen(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) {  // infinity and NaN, which becomes quiet
    uint32_t quiet = rest > 0x7c00u ? 0x00400000u : 0u;
    return Value<float>::from_bits(static_cast<int32_t>(sign | 0x7f800000u | (rest << 13) | quiet));
  }
  // Read as a float, these bits are 2^-112 times the number, subnormals too.
  float magnitude = Value<float>::from_bits(static_cast<int32_t>(rest << 13)) * 0x1p112f;
  return Value<float>::from_bits(Value<float>::bits(magnitude) | static_cast<int32_t>(sign));
#endif
}

BITPARE_INLINE void narrow(float x, float* y) { *y = x; }

BITPARE_INLINE void narrow(float x, BFloat16* y) {
  uint32_t u = static_cast<uint32_t>(Value<float>::bits(x));
  bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  uint32_t rounded = nan ? u | 0x400000u : u + 0x7fffu + ((u >> 16) & 1u);
  y->bits = static_cast<uint16_t>(rounded >> 16);
}

BITPARE_INLINE uint16_t half_bits(float x) {
#ifdef __CUDA_ARCH__
  return __half_as_ushort(__float2half_rn(x));
#else
  uint32_t u = static_cast<uint32_t>(Value<float>::bits(x));
  uint32_t sign = (u >> 16) & 0x8000u, rest = u & 0x7fffffffu;
  if (rest > 0x7f800000u) {
    return static_cast<uint16_t>(sign | 0x7e00u | ((rest >> 13) & 0x3ffu));
  }
  if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (rest < 0x38800000u) {  // below 2^-14: adding 1/2 leaves the multiple of 2^-24 in the low bits
    float shifted = Value<float>::from_bits(static_cast<int32_t>(rest)) + 0.5f;
    uint32_t units = static_cast<uint32_t>(Value<float>::bits(shifted)) - 0x3f000000u;
    return static_cast<uint16_t>(sign | units);
  }
  uint32_t rounded = rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u);
  return static_cast<uint16_t>(sign | (rounded >> 13));
#endif
}

BITPARE_INLINE void narrow(float x, Half* y) { y->bits = half_bits(x); }

}  // namespace math
}  // namespace bitpare
