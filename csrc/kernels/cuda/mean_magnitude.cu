#include "kernels/cuda/reduce.h"
#include "kernels/mean_magnitude.h"

namespace bitpare {
namespace {

struct Magnitude {
  bool all;

  __device__ float operator()(const Lane& lane, float* terms, const float* x) const {
    auto m = math::magnitude_terms(x[0], all ? -1.0f : lane.affine.threshold);
    terms[0] = m.sum;
    terms[1] = m.count;
    return x[0];
  }
};

struct StoreMean {
  float* mean;
  __device__ void operator()(int64_t c, const float* sums) const {
    mean[c] = math::mean_of(sums[0], sums[1]);
  }
};

}  // namespace

// x in; two sums a channel.
void mean_magnitude(const MeanMagnitude& args, const OnCuda& cuda) {
  Quantizer q;
  q.threshold = args.threshold;
  q.channel = {args.layout.inner, args.layout.channels};
  with_type(args.dtype, [&]<class T>(T*) {
    reduce<math::Sum, kMagnitudeTerms>(cuda, q, args.layout, args.partial, StoreMean{args.mean},
                                       Magnitude{!args.threshold}, static_cast<T*>(nullptr),
                                       static_cast<const T*>(args.x));
  });
}

}  // namespace bitpare
