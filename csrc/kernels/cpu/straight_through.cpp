#include "kernels/straight_through.h"

#include "kernels/cpu/blocks.h"

namespace bitpare {

// Each core works through blocks of 64 values: it reads dy and a word of bits, and writes dx.
template <>
void straight_through(const StraightThrough& args, const OnCpu<BITPARE_ISA>& cpu) {
  with_type(args.dtype, [&]<class T>(T*) {
    bool streamed = args.n * static_cast<int64_t>(sizeof(T)) > kStreamBytes;
    parallel_blocks(cpu.parallel_for, args.n, [&](int64_t begin, int64_t end) {
      auto formula = [inside = args.inside](Place& place, Vec dy) [[gnu::always_inline]] {
        return keep(dy, inside[place.block / kBlock] >> (place.k * kWidth));
      };
      map(Quantizer{}, begin, end, streamed, formula, static_cast<T*>(args.dx), nullptr,
          static_cast<const T*>(args.dy));
    });
  });
}

}  // namespace bitpare
