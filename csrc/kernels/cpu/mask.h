// The bits of a packed mask in the order of memory.
#pragma once
#include "kernels/cpu/blocks.h"
#include "math/mask.h"

namespace bitpare {
namespace {

// The words of a mask for a chunk of elements: the mask's own if its order is that of memory, else
// a reordered copy.
class MaskWords {
 public:
  // The word of element first is the first; first is a multiple of 64, last - first at most kChunk.
  const uint64_t* of(const uint64_t* mask, const MaskLayout& l, int64_t first, int64_t last) {
    if (math::in_logical_order(l)) return mask + first / kBlock;
    auto walk = math::MaskWalk::from(l, first);
    for (int64_t i = first; i < last; i += kBlock) {
      int64_t count = last - i < kBlock ? last - i : kBlock;
      uint64_t word = 0;
      for (int64_t j = 0; j < count; ++j) {
        uint64_t bit = static_cast<uint64_t>(walk.bit);
        word |= (mask[bit / 64] >> (bit % 64) & 1) << j;
        math::MaskWalk::next(l, &walk);
      }
      gathered_[(i - first) / kBlock] = word;
    }
    return gathered_;
  }

 private:
  uint64_t gathered_[kChunk / kBlock];
};

// f(first, last, words) for the chunks of [begin, end), which begins at a multiple of 64.
template <class F>
void for_each_masked_chunk(const uint64_t* mask, const MaskLayout& l, int64_t begin, int64_t end,
                           F f) {
  MaskWords words;
  for (int64_t first = begin; first < end; first += kChunk) {
    int64_t last = first + kChunk < end ? first + kChunk : end;
    f(first, last, words.of(mask, l, first, last));
  }
}

}  // namespace
}  // namespace bitpare
