#include "kernels/cuda/blocks.h"
#include "kernels/qparams.h"

namespace bitpare {
namespace {

// A thread takes one channel.
__global__ void __launch_bounds__(kThreads) qparams_kernel(QparamsFromRange args) {
  int64_t c = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (c >= args.n) return;
  math::Qparams p = math::qparams(args.low[c], args.high[c], args.rule);
  args.scale[c] = p.scale;
  args.zero_point[c] = p.zero_point;
}

}  // namespace

void qparams(const QparamsFromRange& args, const OnCuda& cuda) {
  if (args.n == 0) return;
  launch(qparams_kernel, blocks_for(args.n, kThreads), kThreads, cuda.stream, args);
}

}  // namespace bitpare
