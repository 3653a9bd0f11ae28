#include "kernels/soft_threshold.h"

#include "kernels/cpu/blocks.h"
#include "math/soft_threshold.h"

namespace bitpare {

// Each core works through blocks of 64 values: it reads x, and writes y and a word of bits.
template <>
void soft_threshold(const SoftThreshold& args, const OnCpu<BITPARE_ISA>& cpu) {
  with_type(args.dtype, [&]<class T>(T*) {
    bool streamed = args.n * static_cast<int64_t>(sizeof(T)) > kStreamBytes;
    Vec threshold = math::splat<Vec>(args.threshold);
    parallel_blocks(cpu.parallel_for, args.n, [&](int64_t begin, int64_t end) {
      auto formula = [threshold](Place& place, Vec x) [[gnu::always_inline]] {
        Vec y = math::soft_threshold(x, threshold);
        place.inside = equal_bits(y, Vec{}) ^ (~0ull >> (kBlock - kWidth));
        return y;
      };
      map(Quantizer{}, begin, end, streamed, formula, static_cast<T*>(args.y), args.inside,
          static_cast<const T*>(args.x));
    });
  });
}

}  // namespace bitpare
