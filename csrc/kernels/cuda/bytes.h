// Four bytes at a time.
#pragma once
#include <cstdint>

namespace bitpare {
namespace {

// Four bytes in one word, at any address.
__device__ inline uint32_t quad_at(const uint8_t* p) {
  if (reinterpret_cast<uintptr_t>(p) % 4 == 0) return *reinterpret_cast<const uint32_t*>(p);
  return p[0] | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 |
         static_cast<uint32_t>(p[3]) << 24;
}

// sum + the products of (x - 128), x without a sign, and of w: dp4a takes both with the same sign.
__device__ inline int32_t dot4_less_128(uint32_t x, uint32_t w, int32_t sum) {
  return __dp4a(static_cast<int32_t>(x ^ 0x80808080u), static_cast<int32_t>(w), sum);
}

// Byte i of word j becomes byte j of word i.
__device__ inline void transpose(uint32_t (&words)[4]) {
  uint32_t low = __byte_perm(words[0], words[1], 0x5140);
  uint32_t high = __byte_perm(words[0], words[1], 0x7362);
  uint32_t second_low = __byte_perm(words[2], words[3], 0x5140);
  uint32_t second_high = __byte_perm(words[2], words[3], 0x7362);
  words[0] = __byte_perm(low, second_low, 0x5410);
  words[1] = __byte_perm(low, second_low, 0x7632);
  words[2] = __byte_perm(high, second_high, 0x5410);
  words[3] = __byte_perm(high, second_high, 0x7632);
}

}  // namespace
}  // namespace bitpare
