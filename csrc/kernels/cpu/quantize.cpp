#include "kernels/quantize.h"

#include "kernels/cpu/blocks.h"

namespace bitpare {
// Each core works through blocks of 64 values: it reads x and writes integers.
template <>
void quantize(const Quantize& args, const OnCpu<BITPARE_ISA>& cpu) {
  const Quantizer& q = args.quantizer;
  with_type(args.dtype, [&]<class T>(T*) {
    with_int_type(args.int_type, [&]<class Q>(Q*) {
      parallel_blocks(cpu.parallel_for, args.n, [&](int64_t begin, int64_t end) {
        Vec low = math::splat<Vec>(q.quant_min), high = math::splat<Vec>(q.quant_max);
        VecInt odd = {};
        auto formula = [&, low, high](Place& place, Vec x) [[gnu::always_inline]] {
          auto c = math::quantize<Rounding::nearest>(x, place.affine, low, high, Vec{});
          odd |= c.code != c.code;
          return c.code == c.code ? c.code : place.affine.zero_point;
        };
        map(q, begin, end, false, formula, static_cast<Q*>(args.q), nullptr,
            static_cast<const T*>(args.x));
        int32_t any = 0;
        for (int l = 0; l < kWidth; ++l) any |= odd[l];
        if (any && args.saw_nan) __atomic_store_n(args.saw_nan, 1, __ATOMIC_RELAXED);
      });
    });
  });
}

// Like quantize(), but reads integers and writes y.
template <>
void dequantize(const Dequantize& args, const OnCpu<BITPARE_ISA>& cpu) {
  with_type(args.dtype, [&]<class T>(T*) {
    with_int_type(args.int_type, [&]<class Q>(Q*) {
      parallel_blocks(cpu.parallel_for, args.n, [&](int64_t begin, int64_t end) {
        auto formula = [](Place& place, Vec code)
                           [[gnu::always_inline]] { return math::dequantize(code, place.affine); };
        map(args.quantizer, begin, end, false, formula, static_cast<T*>(args.y), nullptr,
            static_cast<const Q*>(args.q));
      });
    });
  });
}

}  // namespace bitpare
