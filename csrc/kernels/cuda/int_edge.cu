#include "kernels/cuda/blocks.h"
#include "kernels/int_edge.h"

namespace bitpare {
namespace {

__global__ void __launch_bounds__(kThreads) int_edge_kernel(IntEdge args, int64_t n) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  int64_t c = i % args.channels, p = i / args.channels;
  int64_t at =
      p / args.pixels * args.image_step + p % args.pixels * args.pixel_step + c * args.channel_step;
  uint8_t* code = args.codes + p * args.step + c;
  if (args.floats) {
    float t = math::code_of(args.floats[at], 1.0f / args.scale, args.range.low, args.range.high);
    *code = static_cast<uint8_t>(static_cast<int32_t>(t) + args.range.zero);
  } else {
    int32_t less_zero = static_cast<int32_t>(*code) - args.range.zero;
    args.result[at] = static_cast<float>(less_zero) * args.scale;
  }
}

}  // namespace

void int_edge(const IntEdge& args, const OnCuda& cuda) {
  int64_t n = args.images * args.pixels * args.channels;
  if (n == 0) return;
  launch(int_edge_kernel, blocks_for(n, kThreads), kThreads, cuda.stream, args, n);
}

}  // namespace bitpare
