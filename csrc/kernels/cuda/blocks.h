// Loops for every elementwise kernel: the counterpart of kernels/cpu/blocks.h.
#pragma once
#include "kernels/cuda/launch.h"
#include "kernels/dispatch.h"
#include "math/fake_quant.h"
#include "math/philox.h"

namespace bitpare {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;
constexpr int64_t kPerBlock = kThreads * kPerThread;

int64_t blocks_for(int64_t items, int64_t per_block) { return (items + per_block - 1) / per_block; }

// The position and channel values of the element that a formula works on.
struct Place {
  math::Affine<float> affine;
  int64_t i;
  bool inside = false;  // for the formula to set
};

template <class T>
struct alignas(kPerThread * sizeof(T) < 16 ? kPerThread * sizeof(T) : 16) Pack {
  T at[kPerThread];
};

BITPARE_INLINE float to_float(float x) { return x; }
BITPARE_INLINE float to_float(Half x) { return math::widen(x); }
BITPARE_INLINE float to_float(BFloat16 x) { return math::widen(x); }
template <class T>
BITPARE_INLINE float to_float(T x) {
  return static_cast<float>(x);
}
BITPARE_INLINE void from_float(float x, float* y) { math::narrow(x, y); }
BITPARE_INLINE void from_float(float x, Half* y) { math::narrow(x, y); }
BITPARE_INLINE void from_float(float x, BFloat16* y) { math::narrow(x, y); }
template <class T>
BITPARE_INLINE void from_float(float x, T* y) {
  *y = static_cast<T>(x);
}

// Elements first .. first + 7 where a whole pack fits and is aligned, else one by one; 0 past n.
template <class T>
BITPARE_INLINE void load_pack(const T* p, int64_t first, int64_t n, float* out) {
  using Aligned = Pack<T>;
  if (first + kPerThread <= n && reinterpret_cast<uintptr_t>(p) % alignof(Aligned) == 0) {
    Aligned pack = *reinterpret_cast<const Aligned*>(p + first);
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) out[e] = to_float(pack.at[e]);
  } else {
    for (int e = 0; e < kPerThread; ++e) out[e] = first + e < n ? to_float(p[first + e]) : 0.0f;
  }
}

template <class T>
BITPARE_INLINE void store_pack(T* p, int64_t first, int64_t n, const float* values) {
  using Aligned = Pack<T>;
  if (first + kPerThread <= n && reinterpret_cast<uintptr_t>(p) % alignof(Aligned) == 0) {
    Aligned pack;
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) from_float(values[e], &pack.at[e]);
    *reinterpret_cast<Aligned*>(p + first) = pack;
  } else {
    for (int e = 0; e < kPerThread && first + e < n; ++e) from_float(values[e], p + first + e);
  }
}

// The channel of an element and, step by step, of those after it.
class ChannelWalk {
 public:
  BITPARE_INLINE ChannelWalk at(const Quantizer& q, int64_t first, int64_t n) {
    ChannelWalk walk;
    int64_t inner = q.channel.inner, channels = q.channel.channels;
    if (channels == 1) {
      walk.channel_ = 0;
      walk.offset_ = 0;
    } else if (n <= 0x7fffffff) {  // a division of 32 bits costs a quarter of one of 64
      uint32_t i = static_cast<uint32_t>(first), run = static_cast<uint32_t>(inner);
      uint32_t row = i / run;
      walk.offset_ = i - row * run;
      walk.channel_ = row % static_cast<uint32_t>(channels);
    } else {
      walk.offset_ = first % inner;
      walk.channel_ = first / inner % channels;
    }
    walk.affine = math::affine_of_channel(q, walk.channel_);
    return walk;
  }

  BITPARE_INLINE void next(const Quantizer& q, ChannelWalk* walk) {
    if (q.channel.channels == 1 || ++walk->offset_ < q.channel.inner) return;
    walk->offset_ = 0;
    if (++walk->channel_ == q.channel.channels) walk->channel_ = 0;
    walk->affine = math::affine_of_channel(q, walk->channel_);
  }

  math::Affine<float> affine;

 private:
  int64_t channel_, offset_;
};

// y[i] = f(place, values) with values the i-th element of each x. A thread takes eight neighbours:
// whole 16-byte words in and out, and one byte of bits, so that no thread waits for another.
template <class Out, class F, class... In>
__global__ void __launch_bounds__(kThreads)
    map_kernel(Quantizer q, int64_t n, F f, Out* y, uint8_t* bits, const In*... x) {
  int64_t first = blockIdx.x * kPerBlock + static_cast<int64_t>(threadIdx.x) * kPerThread;
  if (first >= n) {
    if (bits && first < (n + 63) / 64 * 64) bits[first / 8] = 0;
    return;
  }
  float in[sizeof...(In)][kPerThread], out[kPerThread];
  int input = 0;
  (load_pack(x, first, n, in[input++]), ...);
  ChannelWalk walk = ChannelWalk::at(q, first, n);
  uint32_t inside = 0;
#pragma unroll
  for (int e = 0; e < kPerThread; ++e) {
    float values[sizeof...(In)];
    for (int j = 0; j < static_cast<int>(sizeof...(In)); ++j) values[j] = in[j][e];
    Place place = {walk.affine, first + e};
    out[e] = f(place, values);
    inside |= static_cast<uint32_t>(place.inside && first + e < n) << e;
    ChannelWalk::next(q, &walk);
  }
  store_pack(y, first, n, out);
  if (bits) bits[first / 8] = static_cast<uint8_t>(inside);
}

template <class Out, class F, class... In>
void map(const OnCuda& cuda, const Quantizer& q, int64_t n, F f, Out* y, uint64_t* bits,
         const In*... x) {
  if (n == 0) return;
  int64_t covered = bits ? (n + 63) / 64 * 64 : n;
  launch(map_kernel<Out, F, In...>, blocks_for(covered, kPerBlock), kThreads, cuda.stream, q, n, f,
         y, reinterpret_cast<uint8_t*>(bits), x...);
}

template <Rounding kRounding>
BITPARE_INLINE float uniform(const Place& place, math::PhiloxKey key) {
  if constexpr (kRounding == Rounding::stochastic) return math::uniform_at(place.i, key);
  return 0.0f;
}

// rng is in device memory, so each thread reads it.
template <Rounding kRounding>
BITPARE_INLINE math::PhiloxKey key_on_device(const int64_t* rng) {
  if constexpr (kRounding == Rounding::stochastic) return math::philox_key(rng);
  return {};
}

}  // namespace
}  // namespace bitpare
