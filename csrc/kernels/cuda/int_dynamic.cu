#include "kernels/cuda/blocks.h"
#include "kernels/int_dynamic.h"

namespace bitpare {
namespace {

// A thread takes a value.
__global__ void __launch_bounds__(kThreads) int_dynamic_kernel(IntDynamic args, int64_t n) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  int64_t row = i / args.channels, at = row * args.scale_step;
  uint8_t* code = args.codes + row * args.step + i % args.channels;
  int32_t zero = args.zeros[at];
  if (!args.floats) {
    args.result[i] = static_cast<float>(*code - zero) * args.scales[at];
    return;
  }
  auto less_zero = static_cast<float>(args.up - zero);
  float x = math::clamp(args.floats[i], args.least, args.most);
  float t = math::code_of(x, 1.0f / args.scales[at], args.quant_min + less_zero,
                          args.quant_max + less_zero);
  *code = static_cast<uint8_t>(static_cast<int32_t>(t) + zero);
}

}  // namespace

void int_dynamic(const IntDynamic& args, const OnCuda& cuda) {
  int64_t n = args.rows * args.channels;
  if (n == 0) return;
  launch(int_dynamic_kernel, blocks_for(n, kThreads), kThreads, cuda.stream, args, n);
}

}  // namespace bitpare
