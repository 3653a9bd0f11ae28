#include "kernels/cuda/blocks.h"
#include "kernels/update_ranges.h"

namespace bitpare {
namespace {

// A kernel's parameters hold 4 KB.
constexpr int64_t kStates = 60;

struct Chunk {
  QuantizerState states[kStates];
  UpdateRule rule;
};
static_assert(sizeof(Chunk) <= 4096);

struct PendingSeen {
  bool range, broken;
};

// A block takes one quantizer; its threads look at all that is pending before one of them writes.
__global__ void __launch_bounds__(kThreads) update_ranges_kernel(Chunk chunk) {
  BITPARE_SHARED(PendingSeen, seen);
  const QuantizerState& s = chunk.states[blockIdx.x];
  if (threadIdx.x == 0) seen = {false, false};
  __syncthreads();
  for (int64_t j = threadIdx.x; j < s.n; j += kThreads) {
    math::Pending p = math::pending_of(s.pending[j], s.pending[s.n + j]);
    if (p == math::Pending::range) seen.range = true;
    if (p == math::Pending::broken) seen.broken = true;
  }
  int64_t merges = s.count[0];
  __syncthreads();
  bool merge = seen.range && !seen.broken;
  for (int64_t j = threadIdx.x; j < s.n; j += kThreads) {
    math::update_scale(s, chunk.rule, j, merge, merges);
  }
  if (threadIdx.x != 0) return;
  s.count[0] += merge;
  s.count[1] += seen.broken;
}

}  // namespace

// One launch for every kStates quantizers; pointers go with it, so nothing is uploaded.
void update_ranges(const UpdateRanges& args, const OnCuda& cuda) {
  for (int64_t first = 0; first < args.size; first += kStates) {
    int64_t count = args.size - first < kStates ? args.size - first : kStates;
    Chunk chunk = {};
    chunk.rule = args.rule;
    for (int64_t i = 0; i < count; ++i) chunk.states[i] = args.states[first + i];
    launch(update_ranges_kernel, count, kThreads, cuda.stream, chunk);
  }
}

}  // namespace bitpare
