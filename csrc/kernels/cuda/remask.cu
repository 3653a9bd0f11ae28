#include "kernels/cuda/batch.h"
#include "kernels/cuda/mask.h"
#include "kernels/remask.h"

namespace bitpare {
namespace {

template <class U>
BITPARE_INLINE void clear(void* x, int64_t first, int64_t n, uint32_t kept) {
  U* values = static_cast<U*>(x) + first;
  for (int e = 0; e < kPerThread && first + e < n; ++e) {
    if (!(kept >> e & 1)) values[e] = 0;
  }
}

// Each thread takes eight neighbours: it reads their bits, and writes zeros where those are 0.
__global__ void __launch_bounds__(kThreads) remask_kernel(Batch<Masked> batch) {
  const Masked& m = item_of(batch, static_cast<int32_t>(blockIdx.x));
  int64_t n = m.n, block = static_cast<int64_t>(blockIdx.x) - m.first_block;
  int64_t first = block * kPerBlock + static_cast<int64_t>(threadIdx.x) * kPerThread;
  if (first >= n) return;
  uint32_t kept = mask_bits(m.mask, m.layout, first, n);
  if (kept == 0xff) return;
  if (m.bytes == 1) return clear<uint8_t>(m.x, first, n, kept);
  if (m.bytes == 2) return clear<uint16_t>(m.x, first, n, kept);
  if (m.bytes == 4) return clear<uint32_t>(m.x, first, n, kept);
  clear<uint64_t>(m.x, first, n, kept);
}

}  // namespace

void remask(const Remask& args, const OnCuda& cuda) {
  for_each_batch(
      args.tensors, args.size, [](const Masked& m) { return blocks_for(m.n, kPerBlock); },
      [](const Masked&) { return true; },
      [&](const Batch<Masked>& batch, int64_t blocks) {
        if (blocks > 0) launch(remask_kernel, blocks, kThreads, cuda.stream, batch);
      });
}

}  // namespace bitpare
