#include "kernels/cuda/reduce.h"
#include "kernels/minmax.h"

namespace bitpare {
namespace {

// Counts are integers, so the order of the atomic additions does not matter.
struct RangeAndBin {
  int64_t* counts;
  const float* low;
  const float* high;
  int32_t bins;

  __device__ float operator()(const Lane& lane, float* terms, const float* in) const {
    float x = in[0];
    if (counts) {
      int64_t c = lane.channel;
      float inverse = math::inverse_bin_width(low[c], high[c], bins);
      int32_t bin = math::bin_of(x, low[c], inverse, bins);
      auto* count = reinterpret_cast<unsigned long long*>(counts + c * bins + bin);
      if (bin >= 0) atomicAdd(count, 1ull);
    }
    terms[0] = x;
    terms[1] = x;
    terms[2] = x == x ? 0.0f : x;
    return x;
  }
};

struct StoreRange {
  float* low;
  float* high;
  __device__ void operator()(int64_t c, const float* terms) const {
    low[c] = math::limit_of(terms[0], terms[2]);
    high[c] = math::limit_of(terms[1], terms[2]);
  }
};

}  // namespace

// Reads x once.
void minmax(const MinMaxOf& args, const OnCuda& cuda) {
  Quantizer q;
  q.channel = {args.layout.inner, args.layout.channels};
  RangeAndBin formula = {args.counts, args.histogram_low, args.histogram_high, args.bins};
  with_type(args.dtype, [&]<class T>(T*) {
    reduce<math::MinMax, kMinMaxTerms>(cuda, q, args.layout, args.partial,
                                       StoreRange{args.low, args.high}, formula,
                                       static_cast<T*>(nullptr), static_cast<const T*>(args.x));
  });
}

}  // namespace bitpare
