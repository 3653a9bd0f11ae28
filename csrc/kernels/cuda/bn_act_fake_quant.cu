#include "kernels/bn_act_fake_quant.h"
#include "kernels/cuda/channel_sums.h"

namespace bitpare {
namespace {

static_assert(kPerBlock == layout::kBnPart, "a block has one range");

__device__ inline bool of_batch(const BnActFakeQuant& args) {
  return args.training && !args.control->freeze;
}

// Sums the terms of the batch's statistics, and writes the statistics.
template <class T>
struct Statistics {
  BnActFakeQuant args;
  float* tables;

  __device__ bool wanted() const { return of_batch(args); }
  __device__ float shift(int64_t channel) const {
    return to_float(static_cast<const T*>(args.x)[channel * args.layout.inner]);
  }
  __device__ float of_channel(int64_t channel) const { return shift(channel); }
  __device__ void add(int64_t at, float shift, float* sums) const {
    float d = to_float(static_cast<const T*>(args.x)[at]) - shift;
    sums[0] += d;
    sums[1] += d * d;
  }

  // sums: null where the running statistics are used.
  __device__ void finish(int64_t c, const float* sums) const {
    int64_t count = args.layout.outer * args.layout.inner, channels = args.layout.channels;
    math::Moments m = {args.running_mean[c], args.running_var[c]};
    if (sums) {
      m = math::moments_of(shift(c), sums[0], sums[1], count);
      args.running_mean[c] = math::running(args.running_mean[c], m.mean, args.momentum);
      args.running_var[c] =
          math::running(args.running_var[c], math::unbiased(m.variance, count), args.momentum);
    }
    auto n = math::normalization(m, args.weight ? args.weight[c] : 1.0f,
                                 args.bias ? args.bias[c] : 0.0f, args.eps);
    tables[c] = n.slope;
    tables[channels + c] = n.offset;
    auto saved = layout::bn_statistics(args.statistics, channels);
    saved.mean[c] = n.mean;
    saved.inverse_std[c] = n.inverse_std;
    saved.slope[c] = n.slope;
    saved.offset[c] = n.offset;
    if (c > 0) return;
    *saved.of_batch = sums ? 1.0f : 0.0f;
    if (sums && args.num_batches_tracked) ++*args.num_batches_tracked;
  }
};

__device__ inline bool is_inside(const uint64_t* words, int64_t i) {
  return reinterpret_cast<const uint8_t*>(words)[i / 8] >> (i % 8) & 1;
}

// mean, slope and offset of one channel; the last two only for shaped activations.
struct ChannelValues {
  float mean, slope, offset;
};

template <bool kShaped>
__device__ ChannelValues values_of(const BnActFakeQuantGradient& args, int64_t channel) {
  auto saved = layout::bn_statistics(args.statistics, args.layout.channels);
  ChannelValues v = {saved.mean[channel], 0.0f, 0.0f};
  if constexpr (kShaped) {
    v.slope = saved.slope[channel];
    v.offset = saved.offset[channel];
  }
  return v;
}

// The same for the gradients.
template <bool kShaped, class T>
struct Gradients {
  BnActFakeQuantGradient args;
  float* tables;

  __device__ bool wanted() const { return true; }
  __device__ ChannelValues of_channel(int64_t channel) const {
    return values_of<kShaped>(args, channel);
  }
  __device__ void add(int64_t at, const ChannelValues& of_channel, float* sums) const {
    float dy = to_float(static_cast<const T*>(args.dy)[at]);
    float x = to_float(static_cast<const T*>(args.x)[at]);
    float dv = math::shaped_gradient<kShaped>(is_inside(args.inside, at) ? dy : 0.0f,
                                              of_channel.slope * x + of_channel.offset);
    sums[0] += dv;
    sums[1] += dv * (x - of_channel.mean);
  }
  __device__ void finish(int64_t c, const float* sums) const {
    int64_t count = args.layout.outer * args.layout.inner, channels = args.layout.channels;
    auto saved = layout::bn_statistics(args.statistics, channels);
    auto g = math::normalization_gradient(sums[0], sums[1], args.weight ? args.weight[c] : 1.0f,
                                          saved.inverse_std[c], count);
    tables[c] = g.slope;
    tables[channels + c] = g.tilt;
    tables[2 * channels + c] = g.offset;
    args.weight_gradient[c] = g.weight;
    args.bias_gradient[c] = g.bias;
  }
};

struct SharedRange {
  float at[3][kThreads];
};

// Merges the ranges of a block's threads; the result is valid in its first thread.
__device__ inline void fold_range(SharedRange& shared, float* terms) {
  for (int t = 0; t < 3; ++t) shared.at[t][threadIdx.x] = terms[t];
  __syncthreads();
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      for (int t = 0; t < 3; ++t) {
        float* mine = &shared.at[t][threadIdx.x];
        *mine = math::MinMax::combine<float>(t, *mine, mine[half]);
      }
    }
    __syncthreads();
  }
  for (int t = 0; t < 3; ++t) terms[t] = shared.at[t][0];
}

// Writes y and one byte of bits for each thread's eight neighbours, and returns the range of their
// v.
template <bool kShaped, bool kActive, bool kQuantize, class T>
__device__ void activate(const BnActFakeQuant& args, const math::ActivationGrid<float>& grid,
                         const float* tables, int64_t n, float* range) {
  int64_t first = blockIdx.x * kPerBlock + static_cast<int64_t>(threadIdx.x) * kPerThread;
  uint8_t* bits = reinterpret_cast<uint8_t*>(args.inside);
  if (first >= n) {
    if (bits && first < (n + 63) / 64 * 64) bits[first / 8] = 0;
    return;
  }
  float in[kPerThread], out[kPerThread];
  load_pack(static_cast<const T*>(args.x), first, n, in);
  Walk walk(args.layout, first, n);
  uint32_t inside = 0;
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) {
    float v = math::shaped<kShaped>(tables[walk.channel] * in[e] +
                                    tables[args.layout.channels + walk.channel]);
    auto a = math::activated<kActive, kQuantize>(v, grid);
    out[e] = a.y;
    if (first + e < n) {
      inside |= static_cast<uint32_t>(a.rounded == a.code) << e;
      for (int t = 0; t < 3; ++t) range[t] = math::MinMax::combine<float>(t, range[t], v);
    }
    walk.next(args.layout);
  }
  store_pack(static_cast<T*>(args.y), first, n, out);
  if (bits) bits[first / 8] = static_cast<uint8_t>(inside);
}

__device__ inline math::ActivationGrid<float> grid_of(const BnActFakeQuant& args) {
  Quantizer q = args.quantizer;
  q.quant_min = static_cast<float>(args.control->quant_min);
  q.quant_max = static_cast<float>(args.control->quant_max);
  return math::activation_grid(q, args.activation);
}

template <bool kShaped, bool kActive, class T>
__global__ void __launch_bounds__(kThreads)
    activate_kernel(BnActFakeQuant args, const float* tables, int64_t n, float* ranges) {
  BITPARE_SHARED(SharedRange, shared);
  auto grid = grid_of(args);
  float range[3];
  for (int t = 0; t < 3; ++t) range[t] = math::MinMax::identity<float>(t);
  if (args.control->quantize) {
    activate<kShaped, kActive, true, T>(args, grid, tables, n, range);
  } else {
    activate<kShaped, kActive, false, T>(args, grid, tables, n, range);
  }
  if (!args.pending || !args.control->observe) return;
  fold_range(shared, range);
  if (threadIdx.x > 0) return;
  for (int t = 0; t < 3; ++t) ranges[3 * blockIdx.x + t] = range[t];
}

// Runs as one block: merges the ranges of all blocks into the pending one.
__global__ void __launch_bounds__(kThreads)
    observe_kernel(BnActFakeQuant args, int64_t blocks, const float* ranges) {
  BITPARE_SHARED(SharedRange, shared);
  if (!args.pending || !args.control->observe) return;
  float range[3];
  for (int t = 0; t < 3; ++t) range[t] = math::MinMax::identity<float>(t);
  for (int64_t b = threadIdx.x; b < blocks; b += kThreads) {
    for (int t = 0; t < 3; ++t)
      range[t] = math::MinMax::combine<float>(t, range[t], ranges[3 * b + t]);
  }
  fold_range(shared, range);
  if (threadIdx.x > 0) return;
  auto grid = grid_of(args);
  for (int t = 0; t < 2; ++t) range[t] = math::clamp(range[t], grid.least, grid.most);
  math::fold_pending(args.pending, args.pending + 1, range);
}

// Writes dx for each thread's eight neighbours.
template <bool kShaped, bool kOfBatch, class T>
__device__ void pass_gradient(const BnActFakeQuantGradient& args, const float* tables, int64_t n) {
  int64_t first = blockIdx.x * kPerBlock + static_cast<int64_t>(threadIdx.x) * kPerThread;
  if (first >= n) return;
  int64_t channels = args.layout.channels;
  float dy[kPerThread], x[kPerThread], out[kPerThread];
  load_pack(static_cast<const T*>(args.dy), first, n, dy);
  load_pack(static_cast<const T*>(args.x), first, n, x);
  uint32_t inside = reinterpret_cast<const uint8_t*>(args.inside)[first / 8];
  Walk walk(args.layout, first, n);
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) {
    int64_t c = walk.channel;
    ChannelValues of = values_of<kShaped>(args, c);
    float dv =
        math::shaped_gradient<kShaped>(inside >> e & 1 ? dy[e] : 0.0f, of.slope * x[e] + of.offset);
    out[e] = math::normalized_gradient<kOfBatch>(dv, x[e], of.mean, tables[c], tables[channels + c],
                                                 tables[2 * channels + c]);
    walk.next(args.layout);
  }
  store_pack(static_cast<T*>(args.dx), first, n, out);
}

template <bool kShaped, class T>
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(BnActFakeQuantGradient args, const float* tables, int64_t n) {
  if (*layout::bn_statistics(args.statistics, args.layout.channels).of_batch != 0.0f) {
    pass_gradient<kShaped, true, T>(args, tables, n);
  } else {
    pass_gradient<kShaped, false, T>(args, tables, n);
  }
}

}  // namespace

// Reads x for the statistics unless the running ones are used, then again, and writes y and bits.
void bn_act_fake_quant(const BnActFakeQuant& args, const OnCuda& cuda) {
  const ReduceLayout& l = args.layout;
  int64_t n = l.outer * l.channels * l.inner, blocks = blocks_for(n, kPerBlock);
  auto workspace = layout::bn_workspace(args.scratch, l);
  float *tables = workspace.tables, *ranges = workspace.ranges;
  with_type(args.dtype, [&]<class T>(T*) {
    sum_channels(cuda, l, args.scratch, Statistics<T>{args, tables});
    auto kernel = activate_kernel<false, true, T>;
    if (args.activation == Activation::none) kernel = activate_kernel<false, false, T>;
    if (math::is_shaped(args.activation)) kernel = activate_kernel<true, false, T>;
    launch(kernel, blocks, kThreads, cuda.stream, args, tables, n, ranges);
  });
  launch(observe_kernel, 1, kThreads, cuda.stream, args, blocks, ranges);
}

// Reads dy, x and bits for the sums, then again, and writes dx.
void bn_act_fake_quant_gradient(const BnActFakeQuantGradient& args, const OnCuda& cuda) {
  const ReduceLayout& l = args.layout;
  int64_t n = l.outer * l.channels * l.inner;
  float* tables = layout::bn_workspace(args.scratch, l).tables;
  auto run = [&]<bool kShaped, class T>() {
    sum_channels(cuda, l, args.scratch, Gradients<kShaped, T>{args, tables});
    launch(gradient_kernel<kShaped, T>, blocks_for(n, kPerBlock), kThreads, cuda.stream, args,
           tables, n);
  };
  with_type(args.dtype, [&]<class T>(T*) {
    if (math::is_shaped(args.activation)) {
      run.template operator()<true, T>();
    } else {
      run.template operator()<false, T>();
    }
  });
}

}  // namespace bitpare
