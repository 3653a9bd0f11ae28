#include "kernels/cuda/blocks.h"
#include "kernels/int_map.h"

namespace bitpare {
namespace {

__global__ void __launch_bounds__(kThreads) int_map_kernel(IntMap args, int64_t n) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  int64_t p = i / args.channels, c = i % args.channels;
  uint8_t code = args.input[p * args.input_step + c];
  if (args.table) {
    code = args.table[code];
  } else if (args.multiplier) {
    float x = static_cast<float>(static_cast<int32_t>(code) - args.zero);
    float value =
        math::affine_code(x, args.multiplier[c], args.offset[c], args.range.low, args.range.high);
    code = static_cast<uint8_t>(static_cast<int32_t>(value) + args.range.zero);
  }
  args.output[p * args.output_step + c] = code;
}

}  // namespace

void int_map(const IntMap& args, const OnCuda& cuda) {
  int64_t n = args.pixels * args.channels;
  if (n == 0) return;
  launch(int_map_kernel, blocks_for(n, kThreads), kThreads, cuda.stream, args, n);
}

}  // namespace bitpare
