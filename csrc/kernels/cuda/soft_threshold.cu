#include "kernels/cuda/blocks.h"
#include "kernels/soft_threshold.h"
#include "math/soft_threshold.h"

namespace bitpare {
namespace {

struct Shrunk {
  float threshold;

  __device__ float operator()(Place& place, const float* x) const {
    float y = math::soft_threshold(x[0], threshold);
    place.inside = y != 0.0f;
    return y;
  }
};

}  // namespace

// Reads x, and writes y and one bit. A thread's eight bits are one byte.
void soft_threshold(const SoftThreshold& args, const OnCuda& cuda) {
  with_type(args.dtype, [&]<class T>(T*) {
    map(cuda, Quantizer{}, args.n, Shrunk{args.threshold}, static_cast<T*>(args.y), args.inside,
        static_cast<const T*>(args.x));
  });
}

}  // namespace bitpare
