// Tests of the emulation of CUDA itself: the errors it must catch, and what warps see.
#include "on_cuda.h"

namespace bitpare {
namespace {

__global__ void neighbour_sum(const float* x, float* y, bool with_barrier) {
  struct Values {
    float at[64];
  };
  BITPARE_SHARED(Values, shared);
  shared.at[threadIdx.x] = x[threadIdx.x];
  if (with_barrier) __syncthreads();
  y[threadIdx.x] = shared.at[threadIdx.x] + shared.at[(threadIdx.x + 1) % 64];
}

TEST(OnHost, CatchesAMissingBarrier) {
  std::vector<float> x(64, 1.0f), y(64);
  on_cuda([&](const OnCuda& cuda, const std::string&) {
    launch(neighbour_sum, 1, 64, cuda.stream, x.data(), y.data(), true);
    EXPECT_EQ(y, std::vector<float>(64, 2.0f));
    launch(neighbour_sum, 1, 64, cuda.stream, x.data(), y.data(), false);
    EXPECT_NE(y, std::vector<float>(64, 2.0f));
  });
}

}  // namespace
}  // namespace bitpare
