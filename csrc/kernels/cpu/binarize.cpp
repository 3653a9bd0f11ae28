#include "kernels/binarize.h"

#include "kernels/cpu/reduce.h"

namespace bitpare {

// Each core works through blocks of 64 values: it reads x and writes y.
template <>
void binarize(const Binarize& args, const OnCpu<BITPARE_ISA>& cpu) {
  with_type(args.dtype, [&]<class T>(T*) {
    with_levels(args.levels, [&]<Levels kLevels>() {
      bool streamed = args.n * static_cast<int64_t>(sizeof(T)) > kStreamBytes;
      parallel_blocks(cpu.parallel_for, args.n, [&](int64_t begin, int64_t end) {
        auto formula = [](Place& place, Vec x) [[gnu::always_inline]] {
          return math::level_of<kLevels>(x, place.affine.threshold) * place.affine.scale;
        };
        map(args.quantizer, begin, end, streamed, formula, static_cast<T*>(args.y), nullptr,
            static_cast<const T*>(args.x));
      });
    });
  });
}

// Reads dy and x once and writes dx; the sums stay in registers.
template <>
void binarize_gradient(const BinarizeGradient& args, const OnCpu<BITPARE_ISA>& cpu) {
  auto finish = [&](int64_t c, const float* sums) { args.scale_gradient[c] = sums[0]; };
  with_type(args.dtype, [&]<class T>(T*) {
    with_levels(args.levels, [&]<Levels kLevels>() {
      auto formula = [clipped = args.clipped](const Lanes& lanes, Vec* terms, Vec dy,
                                              Vec x) [[gnu::always_inline]] {
        const auto& a = lanes.affine;
        auto gradient = math::level_terms<kLevels>(dy, x, a.scale, a.threshold, clipped);
        terms[0] = gradient.scale;
        return gradient.dx;
      };
      reduce<math::Sum, 1>(cpu.parallel_for, args.quantizer, args.layout, args.partial, finish,
                           formula, static_cast<T*>(args.dx), static_cast<const T*>(args.dy),
                           static_cast<const T*>(args.x));
    });
  });
}

}  // namespace bitpare
