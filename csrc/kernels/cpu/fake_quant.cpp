#include "kernels/fake_quant.h"

#include "kernels/cpu/blocks.h"

namespace bitpare {
// Each core works through blocks of 64 values: it reads x once, and writes y and a word of bits.
template <>
void fake_quant(const FakeQuant& args, const OnCpu<BITPARE_ISA>& cpu) {
  math::PhiloxKey key = math::philox_key(args.rng);
  with_type(args.dtype, [&]<class T>(T*) {
    with_rounding(args.rounding, [&]<Rounding kRounding>() {
      bool streamed = args.n * static_cast<int64_t>(sizeof(T)) > kStreamBytes;
      parallel_blocks(cpu.parallel_for, args.n, [&](int64_t begin, int64_t end) {
        Vec low = math::splat<Vec>(args.quantizer.quant_min);
        Vec high = math::splat<Vec>(args.quantizer.quant_max);
        auto formula = [=](Place& place, Vec x) [[gnu::always_inline]] {
          auto c =
              math::quantize<kRounding>(x, place.affine, low, high, uniform<kRounding>(place, key));
          place.inside = equal_bits(c.rounded, c.code);
          return math::dequantize(c.code, place.affine);
        };
        map(args.quantizer, begin, end, streamed, formula, static_cast<T*>(args.y), args.inside,
            static_cast<const T*>(args.x));
      });
    });
  });
}

// Like fake_quant(), but reads dy and x and writes dx.
template <>
void fake_quant_gradient(const FakeQuantGradient& args, const OnCpu<BITPARE_ISA>& cpu) {
  math::PhiloxKey key = math::philox_key(args.rng);
  with_type(args.dtype, [&]<class T>(T*) {
    with_rounding(args.rounding, [&]<Rounding kRounding>() {
      parallel_blocks(cpu.parallel_for, args.n, [&](int64_t begin, int64_t end) {
        Vec low = math::splat<Vec>(args.quantizer.quant_min);
        Vec high = math::splat<Vec>(args.quantizer.quant_max);
        Vec delta = math::splat<Vec>(args.delta), peak = math::splat<Vec>(args.peak);
        bool tanh = args.estimator == Estimator::tanh;
        auto formula = [=](Place& place, Vec dy, Vec x) [[gnu::always_inline]] {
          const auto& a = place.affine;
          auto c = math::quantize<kRounding>(x, a, low, high, uniform<kRounding>(place, key));
          return tanh ? math::tanh_gradient(dy, x, a, c, delta, peak)
                      : math::ewgs_gradient(dy, x, a, c, delta);
        };
        map(args.quantizer, begin, end, false, formula, static_cast<T*>(args.dx), nullptr,
            static_cast<const T*>(args.dy), static_cast<const T*>(args.x));
      });
    });
  });
}

}  // namespace bitpare
