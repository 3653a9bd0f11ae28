#include "kernels/cuda/blocks.h"
#include "kernels/int_product.h"

namespace bitpare {
namespace {

// A thread takes 16 neighbours of a patch: one store.
constexpr int kPatch = 16;

__global__ void __launch_bounds__(kThreads) int_patches_kernel(IntProduct args, int64_t n) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  int64_t each = args.inputs / kPatch, row = i / each, k = i % each * kPatch;
  math::ConvPixel pixel = math::pixel_at(args.conv.shape, args.first + row);
  uint32_t words[kPatch / 4] = {};
  for (int e = 0; e < kPatch; ++e) {
    auto byte = static_cast<uint8_t>(math::patch_value(args, pixel, k + e));
    words[e / 4] |= static_cast<uint32_t>(byte) << (8 * (e % 4));
  }
  auto* out = reinterpret_cast<uint32_t*>(args.patches + row * args.inputs + k);
  for (int w = 0; w < kPatch / 4; ++w) out[w] = words[w];
}

// A thread takes an output of a pixel; neighbours take neighbouring outputs.
__global__ void __launch_bounds__(kThreads) int_finish_kernel(IntProduct args, int64_t n) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  int64_t outputs = args.conv.shape.out_channels, row = i / outputs, o = i % outputs;
  auto sum = static_cast<uint32_t>(args.sums[row * args.sums_step + o]) +
             static_cast<uint32_t>(math::start_of(args.conv, o));
  math::finish(args.conv, args.first + row, o, o, static_cast<int32_t>(sum));
}

}  // namespace

void int_patches(const IntProduct& args, const OnCuda& cuda) {
  int64_t n = args.rows * args.inputs / kPatch;
  if (n == 0) return;
  launch(int_patches_kernel, blocks_for(n, kThreads), kThreads, cuda.stream, args, n);
}

void int_finish(const IntProduct& args, const OnCuda& cuda) {
  int64_t n = args.rows * args.conv.shape.out_channels;
  if (n == 0) return;
  launch(int_finish_kernel, blocks_for(n, kThreads), kThreads, cuda.stream, args, n);
}

}  // namespace bitpare
