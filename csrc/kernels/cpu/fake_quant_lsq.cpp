#include "kernels/fake_quant_lsq.h"

#include "kernels/cpu/reduce.h"

namespace bitpare {

// Reads dy and x once and writes dx; the sums stay in registers.
template <>
void fake_quant_lsq_gradient(const FakeQuantLsqGradient& args, const OnCpu<BITPARE_ISA>& cpu) {
  const Quantizer& q = args.quantizer;
  auto finish = [&](int64_t c, const float* sums) {
    args.scale_gradient[c] = math::lsq_scale_gradient(sums[0], q.scale[c], args.grad_scale);
    if (args.zero_point_gradient) {
      args.zero_point_gradient[c] =
          math::lsq_zero_point_gradient(sums[1], q.scale[c], args.grad_scale);
    }
  };
  with_type(args.dtype, [&]<class T>(T*) {
    Vec low = math::splat<Vec>(q.quant_min), high = math::splat<Vec>(q.quant_max);
    auto formula = [=](const Lanes& lanes, Vec* terms, Vec dy, Vec x) [[gnu::always_inline]] {
      auto gradient = math::lsq_terms(dy, x, lanes.affine, low, high);
      terms[0] = gradient.scale;
      terms[1] = gradient.zero_point;
      return gradient.dx;
    };
    reduce<math::Sum, kLsqTerms>(cpu.parallel_for, q, args.layout, args.partial, finish, formula,
                                 static_cast<T*>(args.dx), static_cast<const T*>(args.dy),
                                 static_cast<const T*>(args.x));
  });
}

}  // namespace bitpare
