#include "kernels/apply_mask.h"

#include "kernels/cpu/mask.h"

namespace bitpare {

// Each core works through blocks of 64 values: it reads x and a word of the mask, and writes y.
template <>
void apply_mask(const ApplyMask& args, const OnCpu<BITPARE_ISA>& cpu) {
  with_type(args.dtype, [&]<class T>(T*) {
    parallel_blocks(cpu.parallel_for, args.layout.n(), [&](int64_t begin, int64_t end) {
      for_each_masked_chunk(args.mask, args.layout, begin, end,
                            [&](int64_t first, int64_t last, const uint64_t* words) {
                              auto formula = [=](Place& place, Vec x) [[gnu::always_inline]] {
                                return keep(
                                    x, words[(place.block - first) / kBlock] >> (place.k * kWidth));
                              };
                              map(Quantizer{}, first, last, false, formula, static_cast<T*>(args.y),
                                  nullptr, static_cast<const T*>(args.x));
                            });
    });
  });
}

}  // namespace bitpare
