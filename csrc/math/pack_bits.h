// Codes of a few bits in a byte.
#pragma once
#include "math/value.h"

namespace bitpare::math {

// The byte that holds `count` codes, at most 8 / bits.
BITPARE_INLINE uint8_t packed_byte(const uint8_t* codes, int64_t count, int32_t bits) {
  int32_t mask = (1 << bits) - 1, packed = 0;
  for (int32_t k = 0; k < count; ++k) packed |= (codes[k] & mask) << (k * bits);
  return static_cast<uint8_t>(packed);
}

// Code j of a packed row, as the bits of an int8 (with its sign) or of a uint8.
BITPARE_INLINE uint8_t unpacked_code(const uint8_t* row, int64_t j, int32_t bits, bool is_signed) {
  int32_t per_byte = 8 / bits, mask = (1 << bits) - 1;
  int32_t code = (row[j / per_byte] >> ((j % per_byte) * bits)) & mask;
  int32_t sign = is_signed ? 1 << (bits - 1) : 0;
  return static_cast<uint8_t>((code ^ sign) - sign);
}

BITPARE_INLINE bool fits(uint8_t code, int32_t bits, bool is_signed) {
  int32_t value = is_signed ? static_cast<int8_t>(code) : code;
  int32_t low = is_signed ? -(1 << (bits - 1)) : 0;
  return value >= low && value < low + (1 << bits);
}

}  // namespace bitpare::math
