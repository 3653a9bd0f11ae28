#include "kernels/apply_mask.h"
#include "kernels/cuda/mask.h"

namespace bitpare {
namespace {

// Each thread takes eight neighbours: it reads x and its bits, and writes y.
template <class T>
__global__ void __launch_bounds__(kThreads) apply_mask_kernel(ApplyMask args, int64_t n) {
  int64_t first = blockIdx.x * kPerBlock + static_cast<int64_t>(threadIdx.x) * kPerThread;
  if (first >= n) return;
  float values[kPerThread];
  load_pack(static_cast<const T*>(args.x), first, n, values);
  uint32_t bits = mask_bits(args.mask, args.layout, first, n);
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) values[e] = bits >> e & 1 ? values[e] : 0.0f;
  store_pack(static_cast<T*>(args.y), first, n, values);
}

}  // namespace

void apply_mask(const ApplyMask& args, const OnCuda& cuda) {
  int64_t n = args.layout.n();
  if (n == 0) return;
  with_type(args.dtype, [&]<class T>(T*) {
    launch(apply_mask_kernel<T>, blocks_for(n, kPerBlock), kThreads, cuda.stream, args, n);
  });
}

}  // namespace bitpare
