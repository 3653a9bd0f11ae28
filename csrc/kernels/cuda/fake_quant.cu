#include "kernels/cuda/blocks.h"
#include "kernels/fake_quant.h"

namespace bitpare {
namespace {

template <Rounding kRounding>
struct Forward {
  float low, high;
  const int64_t* rng;

  __device__ float operator()(Place& place, const float* x) const {
    float u = uniform<kRounding>(place, key_on_device<kRounding>(rng));
    auto c = math::quantize<kRounding>(x[0], place.affine, low, high, u);
    place.inside = c.rounded == c.code;
    return math::dequantize(c.code, place.affine);
  }
};

template <Rounding kRounding>
struct Gradient {
  float low, high, delta, peak;
  bool tanh;
  const int64_t* rng;

  __device__ float operator()(Place& place, const float* in) const {
    float dy = in[0], x = in[1], u = uniform<kRounding>(place, key_on_device<kRounding>(rng));
    const auto& a = place.affine;
    auto c = math::quantize<kRounding>(x, a, low, high, u);
    return tanh ? math::tanh_gradient(dy, x, a, c, delta, peak)
                : math::ewgs_gradient(dy, x, a, c, delta);
  }
};

}  // namespace

// Reads x, and writes y and one bit.
void fake_quant(const FakeQuant& args, const OnCuda& cuda) {
  const Quantizer& q = args.quantizer;
  with_type(args.dtype, [&]<class T>(T*) {
    with_rounding(args.rounding, [&]<Rounding kRounding>() {
      map(cuda, q, args.n, Forward<kRounding>{q.quant_min, q.quant_max, args.rng},
          static_cast<T*>(args.y), args.inside, static_cast<const T*>(args.x));
    });
  });
}

// Reads dy and x, and writes dx.
void fake_quant_gradient(const FakeQuantGradient& args, const OnCuda& cuda) {
  const Quantizer& q = args.quantizer;
  with_type(args.dtype, [&]<class T>(T*) {
    with_rounding(args.rounding, [&]<Rounding kRounding>() {
      Gradient<kRounding> gradient = {
          q.quant_min, q.quant_max, args.delta, args.peak, args.estimator == Estimator::tanh,
          args.rng};
      map(cuda, q, args.n, gradient, static_cast<T*>(args.dx), nullptr,
          static_cast<const T*>(args.dy), static_cast<const T*>(args.x));
    });
  });
}

}  // namespace bitpare
