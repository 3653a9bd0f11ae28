#include "kernels/attention_transfer.h"
#include "kernels/cuda/rows.h"

namespace bitpare {
namespace {

using Shared = SharedRow<math::kUnitTerms>;

template <class T>
__device__ inline float mean_square(const T* x, int64_t channels, int64_t pixels) {
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t c = 0; c < channels; ++c) {
    float v = math::widen(x[c * pixels]);
    sum += v * v;
  }
  return sum * (1.0f / static_cast<float>(channels));
}

// A block takes an image, a thread a pixel at a time.
template <class T>
__global__ void __launch_bounds__(kMostRowWarps* kWarp) images_kernel(AttentionTransfer args) {
  BITPARE_SHARED(Shared, shared);
  int64_t i = blockIdx.x, n = args.pixels;
  const T* student = static_cast<const T*>(args.student) + i * args.student_channels * n;
  const T* teacher = static_cast<const T*>(args.teacher) + i * args.teacher_channels * n;
  auto workspace = layout::attention_workspace(args.scratch + i * layout::attention_floats(n), n);
  float *map = workspace.student, *taught = workspace.teacher, *partial = workspace.partial;
  float sums[math::kUnitTerms], loss;
  for (int64_t p = threadIdx.x; p < n; p += blockDim.x) {
    map[p] = mean_square(student + p, args.student_channels, n);
    taught[p] = mean_square(teacher + p, args.teacher_channels, n);
  }
  __syncthreads();
  sum_row<math::kUnitTerms>(shared, n, partial, sums, [&](int64_t p, float* terms) {
    math::unit_terms(map[p], taught[p], terms);
  });
  FeatureRow row = math::feature_row(sums);
  sum_row<1>(shared, n, partial, &loss, [&](int64_t p, float* terms) {
    float slope;
    terms[0] = math::unit_apart(map[p], taught[p], row.student, row.teacher, row.cosine, &slope);
    taught[p] = slope;
  });
  if (threadIdx.x == 0) args.losses[i] = loss;
  if (!args.gradient) return;
  T* gradient = static_cast<T*>(args.gradient) + i * args.student_channels * n;
  float scale = math::attention_scale(args);
  for (int64_t p = threadIdx.x; p < n; p += blockDim.x) {
    float slope = taught[p] * scale;
#pragma unroll 4
    for (int64_t c = 0; c < args.student_channels; ++c) {
      math::narrow(slope * math::widen(student[c * n + p]), gradient + c * n + p);
    }
  }
}

__global__ void __launch_bounds__(kMostRowWarps* kWarp) mean_kernel(AttentionTransfer args) {
  BITPARE_SHARED(Shared, shared);
  float sum = sum_of(shared, args.losses, args.images, args.losses + args.images);
  if (threadIdx.x == 0) args.loss[0] = sum * math::attention_factor(args);
}

}  // namespace

void attention_transfer(const AttentionTransfer& args, const OnCuda& cuda) {
  with_type(args.dtype, [&]<class T>(T*) {
    launch(images_kernel<T>, args.images, kMostRowWarps * kWarp, cuda.stream, args);
  });
  launch(mean_kernel, 1, threads_for_row(args.images), cuda.stream, args);
}

}  // namespace bitpare
