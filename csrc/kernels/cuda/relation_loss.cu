#include "kernels/cuda/rows.h"
#include "kernels/relation_loss.h"

namespace bitpare {
namespace {

using layout::Relations;
using layout::RelationWorkspace;

// Runs one thread for each of n.
template <class F>
__global__ void __launch_bounds__(kThreads) each_kernel(int64_t n, RelationLoss args, F f) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) f(args, layout::relation_workspace(args.scratch, args.samples), i);
}

template <class F>
void for_each(const OnCuda& cuda, int64_t n, const RelationLoss& args, F f) {
  launch(each_kernel<F>, blocks_for(n, kThreads), kThreads, cuda.stream, n, args, f);
}

// f(j) over a row, in lanes.
template <class F>
__device__ inline double sum_of_samples(int64_t samples, F f) {
  double lanes[kDoubleLanes];
  for (double& lane : lanes) lane = 0.0;
  for (int64_t first = 0; first < samples; first += kDoubleLanes) {
#pragma unroll
    for (int64_t l = 0; l < kDoubleLanes; ++l) {
      if (first + l < samples) lanes[l] += f(first + l);
    }
  }
  return math::fold_doubles(lanes, kDoubleLanes);
}

// Each warp takes a pair [i, j], with j up to the stride.
__global__ void __launch_bounds__(kThreads) measure_kernel(RelationLoss args) {
  RelationWorkspace workspace = layout::relation_workspace(args.scratch, args.samples);
  int64_t pair = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  int64_t stride = layout::stride_of(args.samples), i = pair / stride, j = pair % stride;
  if (i >= args.samples) return;
  int lane = threadIdx.x % kWarp;
  auto measure = [&](const Relations& to, const float* x, int64_t size) {
    double sum = 0.0;
    bool apart = j < args.samples && i != j;
    const float *a = x + (i < j ? i : j) * size, *b = x + (i < j ? j : i) * size;
    for (int64_t k = lane; apart && k < size; k += kWarp) {
      double difference = static_cast<double>(a[k]) - static_cast<double>(b[k]);
      sum += difference * difference;
    }
    for (int half = kWarp / 2; half > 0; half /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, half);
    if (lane != 0) return;
    layout::element(to.squares, args.samples, i, j) = sum;
    layout::element(to.inverse, args.samples, i, j) = math::inverse_distance(sum);
  };
  measure(workspace.student, args.student, args.student_size);
  measure(workspace.teacher, args.teacher, args.teacher_size);
}

struct SumDistances {
  __device__ void operator()(const RelationLoss& args, const RelationWorkspace& workspace,
                             int64_t i) const {
    sum(args, workspace.student, i);
    sum(args, workspace.teacher, i);
  }
  __device__ static void sum(const RelationLoss& args, const Relations& of, int64_t i) {
    of.sum[i] = sum_of_samples(args.samples, [&](int64_t j) {
      return __builtin_sqrt(layout::element(of.squares, args.samples, i, j));
    });
    of.others[i] = sum_of_samples(args.samples, [&](int64_t j) {
      return layout::element(of.squares, args.samples, i, j) > 0.0 ? 1.0 : 0.0;
    });
  }
};

struct CompareDistances {
  __device__ void operator()(const RelationLoss& args, const RelationWorkspace& workspace,
                             int64_t i) const {
    double slope;
    workspace.pairs[i] = sum_of_samples(args.samples, [&](int64_t j) {
      return math::smooth_apart(math::pair_apart(args, workspace, i, j), &slope);
    });
    workspace.along[i] = sum_of_samples(args.samples, [&](int64_t j) {
      math::smooth_apart(math::pair_apart(args, workspace, i, j), &slope);
      return slope * __builtin_sqrt(layout::element(workspace.student.squares, args.samples, i, j));
    });
  }
};

// The angle at i between j and k.
struct Angle {
  double s_inverse, s_to_k, cosine, apart, slope;

  __device__ Angle(const RelationLoss& args, const RelationWorkspace& workspace, int64_t i,
                   int64_t j, int64_t k) {
    s_inverse = layout::element(workspace.student.inverse, args.samples, i, j);
    s_to_k = layout::element(workspace.student.inverse, args.samples, i, k);
    cosine = of(args, workspace.student, i, j, k);
    apart = math::smooth_apart(cosine - of(args, workspace.teacher, i, j, k), &slope);
  }
  __device__ static double of(const RelationLoss& args, const Relations& of, int64_t i, int64_t j,
                              int64_t k) {
    return math::cosine_at(layout::element(of.squares, args.samples, i, j),
                           layout::element(of.squares, args.samples, i, k),
                           layout::element(of.squares, args.samples, j, k),
                           layout::element(of.inverse, args.samples, i, j),
                           layout::element(of.inverse, args.samples, i, k));
  }
};

// Each thread takes a side (i, j), then the side (j, k), which is opposite to the angles at all i.
struct CompareAngles {
  __device__ void operator()(const RelationLoss& args, const RelationWorkspace& workspace,
                             int64_t at) const {
    int64_t j = at / args.samples, i = at % args.samples;
    layout::element(workspace.triples, args.samples, j, i) = sum_of_samples(
        args.samples, [&](int64_t k) { return Angle(args, workspace, i, j, k).apart; });
    layout::element(workspace.side, args.samples, j, i) =
        sum_of_samples(args.samples, [&](int64_t k) {
          Angle a(args, workspace, i, j, k);
          return math::slope_of_side(a.slope, a.cosine, a.s_inverse, a.s_to_k);
        });
    int64_t k = i;
    double sum = 0.0;
    for (i = 0; i < args.samples; ++i) {
      Angle a(args, workspace, i, j, k);
      sum += math::slope_of_opposite(a.slope, a.s_inverse, a.s_to_k);
    }
    layout::element(workspace.opposite, args.samples, j, k) = sum;
  }
};

struct SumAngles {
  __device__ void operator()(const RelationLoss& args, const RelationWorkspace& workspace,
                             int64_t j) const {
    workspace.loss[j] = sum_of_samples(args.samples, [&](int64_t i) {
      return layout::element(workspace.triples, args.samples, j, i);
    });
  }
};

// Runs as one thread: there are as many numbers as samples.
struct TotalDistances {
  __device__ void operator()(const RelationLoss& args, const RelationWorkspace& workspace,
                             int64_t) const {
    Relations both[] = {workspace.student, workspace.teacher};
    for (const Relations& of : both) {
      math::total_of(of.sum, args.samples);
      math::total_of(of.others, args.samples);
    }
  }
};

struct TotalLoss {
  __device__ void operator()(const RelationLoss& args, const RelationWorkspace& workspace,
                             int64_t) const {
    if (args.distance != 0.0) math::total_of(workspace.pairs, args.samples);
    if (args.distance != 0.0) math::total_of(workspace.along, args.samples);
    if (args.angle != 0.0) math::total_of(workspace.loss, args.samples);
    args.loss[0] = static_cast<float>(math::relation_total(args, workspace));
  }
};

// The pulls take the place of the losses, which are summed up.
struct Pulls {
  __device__ void operator()(const RelationLoss& args, const RelationWorkspace& workspace,
                             int64_t at) const {
    int64_t i = at / args.samples, j = at % args.samples;
    layout::element(workspace.triples, args.samples, i, j) = math::pull(args, workspace, i, j);
  }
};

struct Gradient {
  __device__ void operator()(const RelationLoss& args, const RelationWorkspace& workspace,
                             int64_t at) const {
    int64_t n = args.student_size, i = at / n, feature = at % n;
    const float* x = args.student + feature;
    float own = x[i * n], sum = 0.0f;
    for (int64_t j = 0; j < args.samples; ++j) {
      sum += static_cast<float>(layout::element(workspace.triples, args.samples, i, j)) *
             (own - x[j * n]);
    }
    args.gradient[at] = sum;
  }
};

}  // namespace

void relation_loss(const RelationLoss& args, const OnCuda& cuda) {
  int64_t n = args.samples, pairs = n * layout::stride_of(n);
  launch(measure_kernel, blocks_for(pairs, kThreads / kWarp), kThreads, cuda.stream, args);
  for_each(cuda, n, args, SumDistances{});
  for_each(cuda, 1, args, TotalDistances{});
  if (args.distance != 0.0) for_each(cuda, n, args, CompareDistances{});
  if (args.angle != 0.0) {
    for_each(cuda, n * n, args, CompareAngles{});
    for_each(cuda, n, args, SumAngles{});
  }
  for_each(cuda, 1, args, TotalLoss{});
  if (!args.gradient) return;
  for_each(cuda, n * n, args, Pulls{});
  for_each(cuda, n * args.student_size, args, Gradient{});
}

}  // namespace bitpare
