#include "kernels/cuda/reduce.h"
#include "kernels/observe_histogram.h"

namespace bitpare {
namespace {

// How many values of a channel a block counts; a histogram of as many bins fits its shared memory.
constexpr int64_t kValuesPerBlock = 8192;
constexpr int32_t kSharedBins = 8192;

struct LargestOf {
  __device__ float operator()(const Lane&, float* terms, const float* x) const {
    math::largest_terms(x[0], terms);
    return x[0];
  }
};

struct StoreLargest {
  float* largest;
  int64_t* skipped;
  __device__ void operator()(int64_t c, const float* terms) const {
    largest[c] = terms[0];
    if (terms[1] > 0.0f) ++skipped[c];
  }
};

// A block takes one channel, a thread a bin of each tile of new bins. A tile is written once all
// old bins that it and the tiles before it are made of have been read.
__global__ void __launch_bounds__(kThreads) widen_kernel(ObserveHistogram args) {
  int64_t c = blockIdx.x, half = args.bins / 2;
  float old = args.limit[c], limit = math::widened_limit(old, args.largest[c]);
  if (!(old > 0.0f) || limit == old) {
    __syncthreads();
    if (threadIdx.x == 0) args.limit[c] = limit;
    return;
  }
  int32_t k = math::doublings(old, limit);
  int64_t* row = args.counts + c * args.bins;
  for (int64_t first = 0; first < half; first += kThreads) {
    int64_t m = first + threadIdx.x, up = 0, down = 0;
    if (m < half) {
      up = math::folded_count(row, m, false, half, k);
      down = math::folded_count(row, m, true, half, k);
    }
    __syncthreads();
    if (m < half) {
      row[math::place_of(m, false, half)] = up;
      row[math::place_of(m, true, half)] = down;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) args.limit[c] = limit;
}

__device__ void count_one(int64_t* counts, int32_t bin, unsigned long long n) {
  atomicAdd(reinterpret_cast<unsigned long long*>(counts + bin), n);
}

struct SharedBins {
  unsigned at[kSharedBins];
};

// A block takes kValuesPerBlock values of one channel, counted in shared memory first. Counts are
// integers, so the order of the atomic additions does not matter.
template <class T>
__global__ void __launch_bounds__(kThreads)
    count_rows(ObserveHistogram args, int64_t blocks_each, const T* x) {
  BITPARE_SHARED(SharedBins, bins);
  const ReduceLayout& l = args.layout;
  int64_t c = blockIdx.x / blocks_each, values = l.outer * l.inner;
  int64_t first = blockIdx.x % blocks_each * kValuesPerBlock;
  int64_t end = first + kValuesPerBlock < values ? first + kValuesPerBlock : values;
  bool shared = args.bins <= kSharedBins;
  int64_t* counts = args.counts + c * args.bins;
  if (shared) {
    for (int32_t b = threadIdx.x; b < args.bins; b += kThreads) bins.at[b] = 0;
  }
  __syncthreads();
  float per_bin = math::bins_per_unit(args.limit[c], args.bins);
  int64_t mine = first + threadIdx.x, o = mine / l.inner, i = mine % l.inner;
  int64_t rows = kThreads / l.inner, rest = kThreads % l.inner;
#pragma unroll 8
  for (int64_t v = mine; v < end; v += kThreads) {
    float value = to_float(x[(o * l.channels + c) * l.inner + i]);
    int32_t bin = math::symmetric_bin(value, per_bin, args.bins);
    if (bin >= 0 && shared) {
      atomicAdd(&bins.at[bin], 1u);
    } else if (bin >= 0) {
      count_one(counts, bin, 1);
    }
    o += rows;
    i += rest;
    if (i >= l.inner) {
      i -= l.inner;
      ++o;
    }
  }
  __syncthreads();
  if (!shared) return;
  for (int32_t b = threadIdx.x; b < args.bins; b += kThreads) {
    if (bins.at[b] != 0) count_one(counts, b, bins.at[b]);
  }
}

// A thread takes one channel of kSumRows rows, channels innermost: neighbours read neighbours and
// count into rows of their own.
template <class T>
__global__ void __launch_bounds__(kThreads) count_columns(ObserveHistogram args, const T* x) {
  const ReduceLayout& l = args.layout;
  int64_t task = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  int64_t c = task % l.channels, row = task / l.channels * kSumRows;
  int64_t end = row + kSumRows < l.outer ? row + kSumRows : l.outer;
  if (row >= end) return;
  float per_bin = math::bins_per_unit(args.limit[c], args.bins);
#pragma unroll 8
  for (; row < end; ++row) {
    int32_t bin = math::symmetric_bin(to_float(x[row * l.channels + c]), per_bin, args.bins);
    if (bin >= 0) count_one(args.counts + c * args.bins, bin, 1);
  }
}

}  // namespace

// Reads x twice, without a synchronisation with the host.
void observe_histogram(const ObserveHistogram& args, const OnCuda& cuda) {
  const ReduceLayout& l = args.layout;
  int64_t values = l.outer * l.inner;
  if (l.channels == 0 || values == 0) return;
  Quantizer q;
  q.channel = {l.inner, l.channels};
  with_type(args.dtype, [&]<class T>(T*) {
    auto x = static_cast<const T*>(args.x);
    reduce<math::Largest, kLargestTerms>(cuda, q, l, args.partial,
                                         StoreLargest{args.largest, args.skipped}, LargestOf{},
                                         static_cast<T*>(nullptr), x);
    launch(widen_kernel, l.channels, kThreads, cuda.stream, args);
    if (math::channels_innermost(l)) {
      int64_t tasks = math::pieces_of(l) * l.channels;
      launch(count_columns<T>, blocks_for(tasks, kThreads), kThreads, cuda.stream, args, x);
    } else {
      int64_t each = blocks_for(values, kValuesPerBlock);
      launch(count_rows<T>, each * l.channels, kThreads, cuda.stream, args, each, x);
    }
  });
}

}  // namespace bitpare
