#include "kernels/pack_mask.h"

#include "kernels/cpu/blocks.h"

namespace bitpare {
namespace {

// Eight bytes of 0 or 1 as eight bits: the product puts byte i at bit 56 + i.
BITPARE_INLINE uint64_t byte_of(const uint8_t* kept) {
  uint64_t bytes;
  __builtin_memcpy(&bytes, kept, sizeof bytes);
  return (bytes * 0x0102040810204080ull) >> 56;
}

}  // namespace

// Each core works through blocks of 64 bytes, and packs each into a word.
template <>
void pack_mask(const PackMask& args, const OnCpu<BITPARE_ISA>& cpu) {
  parallel_blocks(cpu.parallel_for, args.n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kBlock) {
      uint64_t word = 0;
      if (end - i >= kBlock) {
        for (int64_t j = 0; j < kBlock; j += 8) word |= byte_of(args.kept + i + j) << j;
      } else {
        for (int64_t j = 0; i + j < end; ++j) word |= static_cast<uint64_t>(args.kept[i + j]) << j;
      }
      args.mask[i / kBlock] = word;
    }
  });
}

template <>
void unpack_mask(const UnpackMask& args, const OnCpu<BITPARE_ISA>& cpu) {
  parallel_blocks(cpu.parallel_for, args.n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kBlock) {
      uint64_t word = args.mask[i / kBlock];
      int64_t count = end - i < kBlock ? end - i : kBlock;
      for (int64_t j = 0; j < count; ++j) args.kept[i + j] = word >> j & 1;
    }
  });
}

}  // namespace bitpare
