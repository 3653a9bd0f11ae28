#include "kernels/cuda/blocks.h"
#include "kernels/fake_float.h"

namespace bitpare {
namespace {

template <Rounding kRounding>
struct Forward {
  FloatFormat format;
  const int64_t* rng;

  __device__ float operator()(Place& place, const float* x) const {
    float u = uniform<kRounding>(place, key_on_device<kRounding>(rng));
    auto c = math::round_to_float<kRounding>(x[0] * place.affine.inverse, format, u);
    place.inside = c.rounded == c.code;
    return c.code * place.affine.scale;
  }
};

}  // namespace

// Reads x, and writes y and one bit.
void fake_float(const FakeFloat& args, const OnCuda& cuda) {
  with_type(args.dtype, [&]<class T>(T*) {
    with_rounding(args.rounding, [&]<Rounding kRounding>() {
      map(cuda, args.quantizer, args.n, Forward<kRounding>{args.format, args.rng},
          static_cast<T*>(args.y), args.inside, static_cast<const T*>(args.x));
    });
  });
}

}  // namespace bitpare
