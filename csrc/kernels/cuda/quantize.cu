#include "kernels/cuda/blocks.h"
#include "kernels/quantize.h"

namespace bitpare {
namespace {

struct ToCode {
  float low, high;

  __device__ float operator()(Place& place, const float* x) const {
    auto c = math::quantize<Rounding::nearest>(x[0], place.affine, low, high, 0.0f);
    return c.code == c.code ? c.code : place.affine.zero_point;
  }
};

struct FromCode {
  __device__ float operator()(Place& place, const float* code) const {
    return math::dequantize(code[0], place.affine);
  }
};

}  // namespace

// Reads x and writes integers.
void quantize(const Quantize& args, const OnCuda& cuda) {
  const Quantizer& q = args.quantizer;
  with_type(args.dtype, [&]<class T>(T*) {
    with_int_type(args.int_type, [&]<class Q>(Q*) {
      map(cuda, q, args.n, ToCode{q.quant_min, q.quant_max}, static_cast<Q*>(args.q), nullptr,
          static_cast<const T*>(args.x));
    });
  });
}

// Integers in, y out.
void dequantize(const Dequantize& args, const OnCuda& cuda) {
  with_type(args.dtype, [&]<class T>(T*) {
    with_int_type(args.int_type, [&]<class Q>(Q*) {
      map(cuda, args.quantizer, args.n, FromCode{}, static_cast<T*>(args.y), nullptr,
          static_cast<const Q*>(args.q));
    });
  });
}

}  // namespace bitpare
