#include "kernels/qparams.h"

#include "kernels/cpu/blocks.h"

namespace bitpare {

// Takes one channel at a time: there are few, and each costs a division and a rounding.
template <>
void qparams(const QparamsFromRange& args, const OnCpu<BITPARE_ISA>& cpu) {
  parallel(cpu.parallel_for, args.n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      math::Qparams p = math::qparams(args.low[c], args.high[c], args.rule);
      args.scale[c] = p.scale;
      args.zero_point[c] = p.zero_point;
    }
  });
}

}  // namespace bitpare
