#include "kernels/cuda/blocks.h"
#include "kernels/pack_mask.h"

namespace bitpare {
namespace {

// Each thread packs eight bytes of `kept` into one byte. The last word is padded with 0.
__global__ void __launch_bounds__(kThreads) pack_mask_kernel(PackMask args) {
  int64_t i = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) * 8;
  if (i >= (args.n + 63) / 64 * 64) return;
  uint32_t bits = 0;
  for (int64_t j = 0; j < 8 && i + j < args.n; ++j) {
    bits |= static_cast<uint32_t>(args.kept[i + j]) << j;
  }
  reinterpret_cast<uint8_t*>(args.mask)[i / 8] = static_cast<uint8_t>(bits);
}

__global__ void __launch_bounds__(kThreads) unpack_mask_kernel(UnpackMask args) {
  int64_t i = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) * 8;
  if (i >= args.n) return;
  uint32_t bits = reinterpret_cast<const uint8_t*>(args.mask)[i / 8];
  for (int64_t j = 0; j < 8 && i + j < args.n; ++j) args.kept[i + j] = bits >> j & 1;
}

}  // namespace

void pack_mask(const PackMask& args, const OnCuda& cuda) {
  if (args.n == 0) return;
  launch(pack_mask_kernel, blocks_for((args.n + 63) / 64 * 8, kThreads), kThreads, cuda.stream,
         args);
}

void unpack_mask(const UnpackMask& args, const OnCuda& cuda) {
  if (args.n == 0) return;
  launch(unpack_mask_kernel, blocks_for((args.n + 7) / 8, kThreads), kThreads, cuda.stream, args);
}

}  // namespace bitpare
