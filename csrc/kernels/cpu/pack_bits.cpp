#include "kernels/pack_bits.h"

#include "kernels/cpu/blocks.h"
#include "math/pack_bits.h"

namespace bitpare {

namespace {

// f.template operator()<kBits>() for 1, 2 or 4 bits, so that the loops over a byte unroll.
template <class F>
void with_bits(int32_t bits, F f) {
  if (bits == 1) return f.template operator()<1>();
  if (bits == 2) return f.template operator()<2>();
  f.template operator()<4>();
}

// How many rows make a fair share of work for a thread.
int64_t row_grain(int64_t columns) { return 1 + kGrain / (1 + columns); }

}  // namespace

// Writes bytes in order; no two rows share one.
template <>
void pack_bits(const PackBits& args, const OnCpu<BITPARE_ISA>& cpu) {
  with_bits(args.bits, [&]<int kBits>() {
    constexpr int64_t kPerByte = 8 / kBits;
    int64_t columns = args.columns, row_bytes = (columns + kPerByte - 1) / kPerByte;
    parallel(cpu.parallel_for, args.rows, row_grain(columns), [&](int64_t first, int64_t last) {
      bool odd = false;
      for (int64_t i = first * columns; i < last * columns; ++i) {
        odd |= !math::fits(args.codes[i], kBits, args.is_signed);
      }
      for (int64_t r = first; r < last; ++r) {
        const uint8_t* codes = args.codes + r * columns;
        uint8_t* packed = args.packed + r * row_bytes;
        int64_t whole = columns / kPerByte;
        for (int64_t b = 0; b < whole; ++b) {
          packed[b] = math::packed_byte(codes + b * kPerByte, kPerByte, kBits);
        }
        if (whole < row_bytes) {
          int64_t left = columns - whole * kPerByte;
          packed[whole] = math::packed_byte(codes + whole * kPerByte, left, kBits);
        }
      }
      if (odd && args.out_of_range) __atomic_store_n(args.out_of_range, 1, __ATOMIC_RELAXED);
    });
  });
}

template <>
void unpack_bits(const UnpackBits& args, const OnCpu<BITPARE_ISA>& cpu) {
  with_bits(args.bits, [&]<int kBits>() {
    int64_t columns = args.columns, row_bytes = (columns * kBits + 7) / 8;
    parallel(cpu.parallel_for, args.rows, row_grain(columns), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        const uint8_t* packed = args.packed + r * row_bytes;
        uint8_t* codes = args.codes + r * columns;
        for (int64_t j = 0; j < columns; ++j) {
          codes[j] = math::unpacked_code(packed, j, kBits, args.is_signed);
        }
      }
    });
  });
}

}  // namespace bitpare
