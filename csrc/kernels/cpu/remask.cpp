#include "kernels/remask.h"

#include "kernels/cpu/mask.h"
#include "kernels/cpu/pieces.h"

namespace bitpare {
namespace {

// Elements [0, count) of a block whose word is `kept`.
template <class U>
void clear(U* x, int64_t count, uint64_t kept) {
  uint64_t gone = ~kept & (~0ull >> (kBlock - count));
  for (; gone; gone &= gone - 1) x[__builtin_ctzll(gone)] = 0;
}

// Memory that is already zero is not written.
void clear(float* x, int64_t count, uint64_t kept) {
  if (count < kBlock) return clear(reinterpret_cast<uint32_t*>(x), count, kept);
#pragma GCC unroll 16
  for (int64_t k = 0; k < kVectors; ++k) {
    Vec v = load(x + k * kWidth), left = keep(v, kept >> (k * kWidth));
    if (true_bits((VecInt)v != (VecInt)left)) store(x + k * kWidth, left);
  }
}

template <class U>
void clear_piece(const Masked& m, int64_t begin, int64_t end) {
  for_each_masked_chunk(m.mask, m.layout, begin, end,
                        [&](int64_t first, int64_t last, const uint64_t* words) {
                          for (int64_t i = first; i < last; i += kBlock) {
                            uint64_t kept = words[(i - first) / kBlock];
                            int64_t count = last - i < kBlock ? last - i : kBlock;
                            if (~kept) clear(static_cast<U*>(m.x) + i, count, kept);
                          }
                        });
}

}  // namespace

// Each core takes a share of all units: it reads the masks, and only the memory that they set to
// zero.
template <>
void remask(const Remask& args, const OnCpu<BITPARE_ISA>& cpu) {
  constexpr int64_t kUnit = 1024;
  parallel_pieces<kUnit>(
      cpu.parallel_for, args.size, [&](int64_t i) { return args.tensors[i].n; },
      [&](int64_t i, int64_t first, int64_t last) {
        const Masked& m = args.tensors[i];
        if (m.bytes == 1) return clear_piece<uint8_t>(m, first, last);
        if (m.bytes == 2) return clear_piece<uint16_t>(m, first, last);
        if (m.bytes == 4) return clear_piece<float>(m, first, last);
        clear_piece<uint64_t>(m, first, last);
      });
}

}  // namespace bitpare
