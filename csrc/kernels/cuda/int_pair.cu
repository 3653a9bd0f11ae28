#include "kernels/cuda/blocks.h"
#include "kernels/int_pair.h"

namespace bitpare {
namespace {

__global__ void __launch_bounds__(kThreads) int_pair_kernel(IntPair args, int64_t n) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  int64_t p = i / args.channels, c = i % args.channels;
  int32_t first = args.first[p * args.first_step + c] - args.pairing.first_zero;
  int32_t second = args.second[p / args.repeat * args.second_step + c] - args.pairing.second_zero;
  float code = math::paired(static_cast<float>(first), static_cast<float>(second), args.pairing,
                            args.range.low, args.range.high);
  args.output[p * args.output_step + c] =
      static_cast<uint8_t>(static_cast<int32_t>(code) + args.range.zero);
}

}  // namespace

void int_pair(const IntPair& args, const OnCuda& cuda) {
  int64_t n = args.pixels * args.channels;
  if (n == 0) return;
  launch(int_pair_kernel, blocks_for(n, kThreads), kThreads, cuda.stream, args, n);
}

}  // namespace bitpare
