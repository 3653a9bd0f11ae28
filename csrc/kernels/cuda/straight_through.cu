#include "kernels/cuda/blocks.h"
#include "kernels/straight_through.h"

namespace bitpare {
namespace {

struct Masked {
  const uint64_t* inside;

  __device__ float operator()(Place& place, const float* dy) const {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(inside);
    return bytes[place.i / 8] >> (place.i % 8) & 1 ? dy[0] : 0.0f;
  }
};

}  // namespace

// Reads dy and one bit, and writes dx. A thread's eight bits are one byte.
void straight_through(const StraightThrough& args, const OnCuda& cuda) {
  with_type(args.dtype, [&]<class T>(T*) {
    map(cuda, Quantizer{}, args.n, Masked{args.inside}, static_cast<T*>(args.dx), nullptr,
        static_cast<const T*>(args.dy));
  });
}

}  // namespace bitpare
