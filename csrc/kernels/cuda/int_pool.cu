#include "kernels/cuda/blocks.h"
#include "kernels/int_pool.h"

namespace bitpare {
namespace {

// A thread takes a channel of an output pixel.
__global__ void __launch_bounds__(kThreads) int_pool_kernel(IntPool args, int64_t n) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const ConvShape& s = args.shape;
  int64_t c = i % s.groups, index = i / s.groups;
  math::PoolWindow w = math::window_at(args, index);
  int32_t result = args.maximum ? args.least : 0;
  for (int64_t y = w.top; y < w.bottom; y += math::step_of(s.dilation_height)) {
    for (int64_t x = w.left; x < w.right; x += math::step_of(s.dilation_width)) {
      int32_t code = args.input[((w.image * s.height + y) * s.width + x) * args.input_step + c];
      if (args.maximum) {
        result = code > result ? code : result;
      } else {
        result += code - args.zero;
      }
    }
  }
  if (!args.maximum) {
    float multiplier = math::mean_multiplier(args.scale, args.new_scale, w.count);
    float mean =
        math::requantized(static_cast<float>(result), multiplier, args.range.low, args.range.high);
    result = static_cast<int32_t>(mean) + args.range.zero;
  }
  args.output[index * args.output_step + c] = static_cast<uint8_t>(result);
}

}  // namespace

void int_pool(const IntPool& args, const OnCuda& cuda) {
  const ConvShape& s = args.shape;
  int64_t n = s.batch * s.out_height * s.out_width * s.groups;
  if (n == 0) return;
  launch(int_pool_kernel, blocks_for(n, kThreads), kThreads, cuda.stream, args, n);
}

}  // namespace bitpare
