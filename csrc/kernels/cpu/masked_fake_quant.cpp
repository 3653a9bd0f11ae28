#include "kernels/masked_fake_quant.h"

#include "kernels/cpu/mask.h"

namespace bitpare {

// Each core works through blocks of 64 values: it reads x and a word of the mask, and writes y and
// a word of bits.
template <>
void masked_fake_quant(const MaskedFakeQuant& args, const OnCpu<BITPARE_ISA>& cpu) {
  Vec low = math::splat<Vec>(args.quantizer.quant_min);
  Vec high = math::splat<Vec>(args.quantizer.quant_max);
  bool masks_gradient = args.masks_gradient;
  with_type(args.dtype, [&]<class T>(T*) {
    auto part = [&](int64_t first, int64_t last, const uint64_t* words) {
      auto formula = [=](Place& place, Vec x) [[gnu::always_inline]] {
        uint64_t kept = words[(place.block - first) / kBlock] >> (place.k * kWidth) &
                        (~0ull >> (kBlock - kWidth));
        auto c = math::quantize<Rounding::nearest>(x, place.affine, low, high, Vec{});
        place.inside = equal_bits(c.rounded, c.code) & (masks_gradient ? kept : ~0ull);
        return keep(math::dequantize(c.code, place.affine), kept);
      };
      map(args.quantizer, first, last, false, formula, static_cast<T*>(args.y), args.inside,
          static_cast<const T*>(args.x));
    };
    parallel_blocks(cpu.parallel_for, args.layout.n(), [&](int64_t begin, int64_t end) {
      for_each_masked_chunk(args.mask, args.layout, begin, end, part);
    });
  });
}

}  // namespace bitpare
