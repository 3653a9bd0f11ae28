#include "kernels/mean_magnitude.h"

#include "kernels/cpu/reduce.h"

namespace bitpare {

// Reads x once, and keeps two sums for each channel.
template <>
void mean_magnitude(const MeanMagnitude& args, const OnCpu<BITPARE_ISA>& cpu) {
  Quantizer q;
  q.threshold = args.threshold;
  q.channel = {args.layout.inner, args.layout.channels};
  auto finish = [&](int64_t c, const float* sums) {
    args.mean[c] = math::mean_of(sums[0], sums[1]);
  };
  with_type(args.dtype, [&]<class T>(T*) {
    Vec everything = math::splat<Vec>(-1.0f);
    auto formula = [=, all = !args.threshold](const Lanes& lanes, Vec* terms,
                                              Vec x) [[gnu::always_inline]] {
      auto m = math::magnitude_terms(x, all ? everything : lanes.affine.threshold);
      terms[0] = m.sum;
      terms[1] = m.count;
      return x;
    };
    reduce<math::Sum, kMagnitudeTerms>(cpu.parallel_for, q, args.layout, args.partial, finish,
                                       formula, static_cast<T*>(nullptr),
                                       static_cast<const T*>(args.x));
  });
}

}  // namespace bitpare
