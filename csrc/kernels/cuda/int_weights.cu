#include "kernels/cuda/blocks.h"
#include "kernels/int_weights.h"

namespace bitpare {
namespace {

// A thread takes an output of a row; neighbours take neighbouring outputs, whose fields lie in
// neighbouring bytes. The sum is taken in ascending order, so one thread computes it.
template <int kBits>
__global__ void __launch_bounds__(kThreads) int_weights_kernel(IntWeights args, int64_t n) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  int64_t row = i / args.outputs, o = i % args.outputs;
  int64_t groups = (args.inputs + args.group - 1) / args.group;
  const float* x = args.x + row * args.x_step;
  float total = 0.0f;
  for (int64_t g = 0; g < groups; ++g) {
    int64_t at = (o / kPanel * groups + g) * kPanel + o % kPanel;
    int64_t end = (g + 1) * args.group < args.inputs ? (g + 1) * args.group : args.inputs;
    float sum = 0.0f, zero = args.zero ? args.zero[at] : 0.0f;
    for (int64_t k = g * args.group; k < end; ++k) {
      math::WeightPlace place = math::place_of_field(args.inputs, kBits, o, k);
      int32_t byte = args.weight[place.byte];
      sum += x[k] * math::weight_value<kBits>(byte, place.shift, args.factor, args.first, zero);
    }
    total += sum * args.scale[at];
  }
  args.y[row * args.y_step + o] = math::clamp(total + args.offset[o], args.least, args.most);
}

}  // namespace

void int_weights(const IntWeights& args, const OnCuda& cuda) {
  int64_t n = args.rows * args.outputs;
  if (n == 0) return;
  auto kernel = args.bits == 8   ? int_weights_kernel<8>
                : args.bits == 4 ? int_weights_kernel<4>
                : args.bits == 2 ? int_weights_kernel<2>
                                 : int_weights_kernel<1>;
  launch(kernel, blocks_for(n, kThreads), kThreads, cuda.stream, args, n);
}

}  // namespace bitpare
