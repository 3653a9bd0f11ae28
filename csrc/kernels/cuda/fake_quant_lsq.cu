#include "kernels/cuda/reduce.h"
#include "kernels/fake_quant_lsq.h"

namespace bitpare {
namespace {

struct Gradient {
  float low, high;

  __device__ float operator()(const Lane& lane, float* terms, const float* in) const {
    auto gradient = math::lsq_terms(in[0], in[1], lane.affine, low, high);
    terms[0] = gradient.scale;
    terms[1] = gradient.zero_point;
    return gradient.dx;
  }
};

struct Finish {
  const float* scale;
  float* scale_gradient;
  float* zero_point_gradient;
  float grad_scale;

  __device__ void operator()(int64_t c, const float* sums) const {
    scale_gradient[c] = math::lsq_scale_gradient(sums[0], scale[c], grad_scale);
    if (zero_point_gradient) {
      zero_point_gradient[c] = math::lsq_zero_point_gradient(sums[1], scale[c], grad_scale);
    }
  }
};

}  // namespace

// Reads dy and x, and writes dx.
void fake_quant_lsq_gradient(const FakeQuantLsqGradient& args, const OnCuda& cuda) {
  const Quantizer& q = args.quantizer;
  Finish finish = {q.scale, args.scale_gradient, args.zero_point_gradient, args.grad_scale};
  with_type(args.dtype, [&]<class T>(T*) {
    reduce<math::Sum, kLsqTerms>(cuda, q, args.layout, args.partial, finish,
                                 Gradient{q.quant_min, q.quant_max}, static_cast<T*>(args.dx),
                                 static_cast<const T*>(args.dy), static_cast<const T*>(args.x));
  });
}

}  // namespace bitpare
