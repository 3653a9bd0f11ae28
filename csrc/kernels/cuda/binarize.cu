#include "kernels/binarize.h"
#include "kernels/cuda/reduce.h"

namespace bitpare {
namespace {

template <Levels kLevels>
struct Forward {
  __device__ float operator()(Place& place, const float* x) const {
    return math::level_of<kLevels>(x[0], place.affine.threshold) * place.affine.scale;
  }
};

template <Levels kLevels>
struct Gradient {
  bool clipped;

  __device__ float operator()(const Lane& lane, float* terms, const float* in) const {
    const auto& a = lane.affine;
    auto gradient = math::level_terms<kLevels>(in[0], in[1], a.scale, a.threshold, clipped);
    terms[0] = gradient.scale;
    return gradient.dx;
  }
};

struct StoreSum {
  float* out;
  __device__ void operator()(int64_t c, const float* sums) const { out[c] = sums[0]; }
};

}  // namespace

// Reads x and writes y.
void binarize(const Binarize& args, const OnCuda& cuda) {
  with_type(args.dtype, [&]<class T>(T*) {
    with_levels(args.levels, [&]<Levels kLevels>() {
      map(cuda, args.quantizer, args.n, Forward<kLevels>{}, static_cast<T*>(args.y), nullptr,
          static_cast<const T*>(args.x));
    });
  });
}

// Reads dy and x, and writes dx.
void binarize_gradient(const BinarizeGradient& args, const OnCuda& cuda) {
  with_type(args.dtype, [&]<class T>(T*) {
    with_levels(args.levels, [&]<Levels kLevels>() {
      reduce<math::Sum, 1>(cuda, args.quantizer, args.layout, args.partial,
                           StoreSum{args.scale_gradient}, Gradient<kLevels>{args.clipped},
                           static_cast<T*>(args.dx), static_cast<const T*>(args.dy),
                           static_cast<const T*>(args.x));
    });
  });
}

}  // namespace bitpare
