// Codes of 1, 2 or 4 bits, packed into bytes row by row: code j of a row stands at bit
// (j % per_byte) * bits of byte j / per_byte; the unused bits of a row's last byte are 0.
#pragma once
#include "kernels/backend.h"

namespace bitpare {

// codes: [rows, columns] int8 or uint8, of which the low `bits` count. packed: [rows, ceil(columns
// * bits / 8)]. *out_of_range is set where a code does not fit (CPU only; may be null). is_signed:
// codes are -2^(bits-1) .. 2^(bits-1) - 1, else 0 .. 2^bits - 1.
struct PackBits {
  const uint8_t* codes;
  uint8_t* packed;
  int64_t rows, columns;
  int32_t bits;
  bool is_signed;
  int32_t* out_of_range;
};

struct UnpackBits {
  const uint8_t* packed;
  uint8_t* codes;
  int64_t rows, columns;
  int32_t bits;
  bool is_signed;
};

template <class Isa>
void pack_bits(const PackBits& args, const OnCpu<Isa>& cpu);
void pack_bits(const PackBits& args, const OnCuda& cuda);

template <class Isa>
void unpack_bits(const UnpackBits& args, const OnCpu<Isa>& cpu);
void unpack_bits(const UnpackBits& args, const OnCuda& cuda);

}  // namespace bitpare
