#include "kernels/fake_float.h"

#include "kernels/cpu/blocks.h"

namespace bitpare {

// Each core works through blocks of 64 values: it reads x, and writes y and a word of bits.
template <>
void fake_float(const FakeFloat& args, const OnCpu<BITPARE_ISA>& cpu) {
  math::PhiloxKey key = math::philox_key(args.rng);
  with_type(args.dtype, [&]<class T>(T*) {
    with_rounding(args.rounding, [&]<Rounding kRounding>() {
      bool streamed = args.n * static_cast<int64_t>(sizeof(T)) > kStreamBytes;
      parallel_blocks(cpu.parallel_for, args.n, [&](int64_t begin, int64_t end) {
        auto formula = [key, format = args.format](Place& place, Vec x) [[gnu::always_inline]] {
          auto c = math::round_to_float<kRounding>(x * place.affine.inverse, format,
                                                   uniform<kRounding>(place, key));
          place.inside = equal_bits(c.rounded, c.code);
          return c.code * place.affine.scale;
        };
        map(args.quantizer, begin, end, streamed, formula, static_cast<T*>(args.y), args.inside,
            static_cast<const T*>(args.x));
      });
    });
  });
}

}  // namespace bitpare
