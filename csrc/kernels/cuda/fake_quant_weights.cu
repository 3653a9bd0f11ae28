#include "kernels/cuda/batch.h"
#include "kernels/fake_quant_weights.h"

namespace bitpare {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

__device__ int32_t fold_warp(int32_t widest) {
  for (int half = kWarp / 2; half > 0; half /= 2) {
    int32_t other = __shfl_xor_sync(0xffffffffu, widest, half);
    widest = other > widest ? other : widest;
  }
  return widest;
}

template <class T>
BITPARE_INLINE int32_t raised(int32_t widest, T x) {
  int32_t bits = math::magnitude_bits(to_float(x));
  return bits > widest ? bits : widest;
}

// A weight with one scale is cut into parts, one for each block; the last block to finish writes
// the scale.
constexpr int64_t kPart = 4 * kPerBlock;

template <class T>
__device__ void widest_of_part(const Weight& w, bool power_of_two, int64_t part) {
  auto x = static_cast<const T*>(w.x);
  int64_t end = (part + 1) * kPart < w.n ? (part + 1) * kPart : w.n;
  int32_t widest = 0;
#pragma unroll 8
  for (int64_t e = part * kPart + threadIdx.x; e < end; e += kThreads)
    widest = raised(widest, x[e]);
  widest = fold_warp(widest);
  if (threadIdx.x % kWarp != 0) return;
  atomicMax(w.widest, widest);
  __threadfence();
  int32_t warps = static_cast<int32_t>((w.n + kPart - 1) / kPart) * kWarps;
  if (atomicAdd(w.widest + 1, 1) != warps - 1) return;
  __threadfence();
  int32_t all = atomicMax(w.widest, 0);
  w.scale[0] = math::weight_scale(all, *w.control, power_of_two);
}

// A warp takes the row of one scale.
template <class T>
__device__ void scale_of_row(const Weight& w, bool power_of_two, int64_t row) {
  if (row >= w.scales) return;
  int64_t length = w.n / w.scales;
  auto x = static_cast<const T*>(w.x) + row * length;
  int32_t widest = 0;
#pragma unroll 8
  for (int64_t e = threadIdx.x % kWarp; e < length; e += kWarp) widest = raised(widest, x[e]);
  widest = fold_warp(widest);
  if (threadIdx.x % kWarp != 0) return;
  w.scale[row] = math::weight_scale(widest, *w.control, power_of_two);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    weight_scales_kernel(Batch<Weight> batch, bool power_of_two) {
  const Weight& w = item_of(batch, static_cast<int32_t>(blockIdx.x));
  if (!w.control->observe) return;
  int64_t block = static_cast<int64_t>(blockIdx.x) - w.first_block;
  if (w.scales == 1) {
    widest_of_part<T>(w, power_of_two, block);
  } else {
    scale_of_row<T>(w, power_of_two, block * kWarps + threadIdx.x / kWarp);
  }
}

// Quantizes eight values of one weight from `first` on in place, and returns the bits of those in
// range.
BITPARE_INLINE uint32_t quantize_pack(const Weight& w, int64_t first, float* values) {
  Quantizer q;
  q.scale = w.scale;
  q.channel = {w.n / w.scales, w.scales};
  Control control = *w.control;
  ChannelWalk walk = ChannelWalk::at(q, first, w.n);
  uint32_t inside = 0;
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) {
    auto c = math::quantize<Rounding::nearest>(values[e], walk.affine,
                                               static_cast<float>(control.quant_min),
                                               static_cast<float>(control.quant_max), 0.0f);
    inside |= static_cast<uint32_t>(c.rounded == c.code) << e;
    values[e] = math::dequantize(c.code, walk.affine);
    ChannelWalk::next(q, &walk);
  }
  return inside;
}

// Each thread takes eight neighbours, as in map(), and sets the flag if one was clipped.
template <class T>
__global__ void __launch_bounds__(kThreads) fake_quant_weights_kernel(Batch<Weight> batch) {
  const Weight& w = item_of(batch, static_cast<int32_t>(blockIdx.x));
  int64_t block = static_cast<int64_t>(blockIdx.x) - w.first_block, n = w.n;
  int64_t first = block * kPerBlock + static_cast<int64_t>(threadIdx.x) * kPerThread;
  int64_t words = (n + 63) / 64;
  if (first >= words * 64) return;
  uint32_t inside = 0;
  if (first < n) {
    float values[kPerThread];
    load_pack(static_cast<const T*>(w.x), first, n, values);
    uint32_t valid = first + kPerThread <= n ? 0xff : 0xff >> (first + kPerThread - n);
    inside = valid;
    if (w.control->quantize) inside &= quantize_pack(w, first, values);
    if (inside != valid) w.inside[words] = 1;
    store_pack(static_cast<T*>(w.y), first, n, values);
  }
  reinterpret_cast<uint8_t*>(w.inside)[first / 8] = static_cast<uint8_t>(inside);
}

// This launch comes before any of them is set.
__global__ void __launch_bounds__(kThreads) clear_clipped(Batch<Weight> batch) {
  int32_t i = static_cast<int32_t>(threadIdx.x);
  if (i < batch.size) batch.items[i].inside[(batch.items[i].n + 63) / 64] = 0;
}

}  // namespace

// Reads x once. One launch for as many weights as fit a kernel's parameters.
void weight_scales(const WeightScales& args, const OnCuda& cuda) {
  auto blocks_of = [](const Weight& w) {
    if (w.n == 0) return int64_t{0};
    return w.scales == 1 ? blocks_for(w.n, kPart) : blocks_for(w.scales, kWarps);
  };
  for_each_batch(args.weights, args.size, blocks_of,
                 [&]<class T>(const Batch<Weight>& batch, int64_t blocks, T*) {
                   if (blocks > 0)
                     launch(weight_scales_kernel<T>, blocks, kThreads, cuda.stream, batch,
                            args.power_of_two);
                 });
}

// Reads x, and writes y and bits, after a small launch that clears the words that tell whether
// anything was clipped.
void fake_quant_weights(const FakeQuantWeights& args, const OnCuda& cuda) {
  auto blocks_of = [](const Weight& w) { return blocks_for(w.n, kPerBlock); };
  for_each_batch(args.weights, args.size, blocks_of,
                 [&]<class T>(const Batch<Weight>& batch, int64_t blocks, T*) {
                   launch(clear_clipped, 1, kThreads, cuda.stream, batch);
                   if (blocks > 0)
                     launch(fake_quant_weights_kernel<T>, blocks, kThreads, cuda.stream, batch);
                 });
}

void scale_and_fake_quant_weights(const WeightScales& args, const OnCuda& cuda) {
  weight_scales(args, cuda);
  fake_quant_weights(FakeQuantWeights{args.weights, args.size}, cuda);
}

}  // namespace bitpare
