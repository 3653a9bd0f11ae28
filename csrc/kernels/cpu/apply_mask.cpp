#include "kernels/apply_mask.h"

#include "kernels/cpu/blocks.h"

namespace bitpare {
namespace {

// The bits of elements begin .. end - 1 in memory order; begin is a multiple of 64.
void gather_bits(const ApplyMask& args, int64_t begin, int64_t end, uint64_t* words) {
  auto walk = math::MaskWalk::from(args.layout, begin);
  for (int64_t i = begin; i < end; i += kBlock) {
    int64_t count = end - i < kBlock ? end - i : kBlock;
    uint64_t word = 0;
    for (int64_t j = 0; j < count; ++j) {
      uint64_t bit = static_cast<uint64_t>(walk.bit);
      word |= (args.mask[bit / 64] >> (bit % 64) & 1) << j;
      math::MaskWalk::next(args.layout, &walk);
    }
    *words++ = word;
  }
}

}  // namespace

// A core takes blocks of 64 values: x and one word of bits in, y out.
template <>
void apply_mask(const ApplyMask& args, const OnCpu<BITPARE_ISA>& cpu) {
  bool ordered = math::in_logical_order(args.layout);
  with_type(args.dtype, [&]<class T>(T*) {
    parallel_blocks(cpu.parallel_for, args.layout.n(), [&](int64_t begin, int64_t end) {
      uint64_t gathered[kChunk / kBlock];
      for (int64_t first = begin; first < end; first += kChunk) {
        int64_t last = first + kChunk < end ? first + kChunk : end;
        if (!ordered) gather_bits(args, first, last, gathered);
        const uint64_t* words = ordered ? args.mask + first / kBlock : gathered;
        auto formula = [words, first](Place& place, Vec x) [[gnu::always_inline]] {
          return keep(x, words[(place.block - first) / kBlock] >> (place.k * kWidth));
        };
        map(Quantizer{}, first, last, false, formula, static_cast<T*>(args.y), nullptr,
            static_cast<const T*>(args.x));
      }
    });
  });
}

}  // namespace bitpare
