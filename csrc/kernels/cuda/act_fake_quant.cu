#include "kernels/act_fake_quant.h"
#include "kernels/cuda/blocks.h"

namespace bitpare {
namespace {

static_assert(kActElements == kPerBlock);
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

struct WarpRanges {
  float at[kActTerms][kWarps];
};

// Merges the terms of all threads of a block into thread 0's. Every thread calls.
__device__ void fold_block(float* terms, WarpRanges* shared) {
  int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int t = 0; t < kActTerms; ++t) {
    for (int half = kWarp / 2; half > 0; half /= 2) {
      float other = __shfl_xor_sync(0xffffffffu, terms[t], half);
      terms[t] = math::MinMax::combine<float>(t, terms[t], other);
    }
    if (threadIdx.x % kWarp == 0) shared->at[t][warp] = terms[t];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int t = 0; t < kActTerms; ++t) {
    for (int w = 1; w < kWarps; ++w) {
      terms[t] = math::MinMax::combine<float>(t, terms[t], shared->at[t][w]);
    }
  }
}

BITPARE_INLINE void no_range(float* terms) {
  for (int t = 0; t < kActTerms; ++t) terms[t] = math::MinMax::identity<float>(t);
}

struct Less {
  __host__ __device__ bool operator()(float a, float b) const { return a < b; }
};

// Computes y and the bit of one value, and merges it into the range.
template <Activation kActivation>
BITPARE_INLINE float quantized(const Control& control, const math::Affine<float>& affine, float v,
                               bool* inside, float* terms) {
  float w = math::activate<kActivation>(v), y = w;
  for (int t = 0; t < kActTerms; ++t) terms[t] = math::MinMax::combine<float>(t, terms[t], w);
  *inside = true;
  if (control.quantize) {
    auto c = math::quantize<Rounding::nearest>(w, affine, static_cast<float>(control.quant_min),
                                               static_cast<float>(control.quant_max), 0.0f);
    *inside = c.rounded == c.code;
    y = math::dequantize(c.code, affine);
  }
  if constexpr (kActivation == Activation::relu || kActivation == Activation::relu6) {
    *inside &= math::activation_passes<kActivation>(v, Less{});
  }
  return y;
}

// Each thread takes eight neighbours, as in map(); each block writes one partial range.
template <Activation kActivation, class T>
__global__ void __launch_bounds__(kThreads) act_fake_quant_kernel(ActFakeQuant args) {
  BITPARE_SHARED(WarpRanges, shared);
  Control control = *args.control;
  int64_t n = args.n;
  int64_t first = blockIdx.x * kPerBlock + static_cast<int64_t>(threadIdx.x) * kPerThread;
  float terms[kActTerms];
  no_range(terms);
  uint32_t bits = 0;
  if (first < n) {
    Quantizer q;
    q.scale = args.scale;
    q.zero_point = args.zero_point;
    auto affine = math::affine_of_channel(q, 0);
    float v[kPerThread], more[kPerThread] = {};
    load_pack(static_cast<const T*>(args.x), first, n, v);
    if (args.other) load_pack(static_cast<const T*>(args.other), first, n, more);
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) {
      if (first + e >= n) break;
      bool inside = false;
      if (args.other) v[e] = v[e] + more[e];
      v[e] = quantized<kActivation>(control, affine, v[e], &inside, terms);
      bits |= static_cast<uint32_t>(inside) << e;
    }
    store_pack(static_cast<T*>(args.y), first, n, v);
  }
  if (args.inside && first < (n + 63) / 64 * 64) {
    reinterpret_cast<uint8_t*>(args.inside)[first / 8] = static_cast<uint8_t>(bits);
  }
  if (!args.pending || !control.observe) return;
  fold_block(terms, &shared);
  if (threadIdx.x != 0) return;
  for (int t = 0; t < kActTerms; ++t) args.partial[t * gridDim.x + blockIdx.x] = terms[t];
}

// Runs as one block: merges the partial ranges into the pending range.
__global__ void __launch_bounds__(kThreads) fold_ranges(ActFakeQuant args, int64_t blocks) {
  BITPARE_SHARED(WarpRanges, shared);
  if (!args.control->observe) return;
  float terms[kActTerms];
  no_range(terms);
  for (int64_t b = threadIdx.x; b < blocks; b += kThreads) {
    for (int t = 0; t < kActTerms; ++t) {
      terms[t] = math::MinMax::combine<float>(t, terms[t], args.partial[t * blocks + b]);
    }
  }
  fold_block(terms, &shared);
  if (threadIdx.x == 0) math::fold_pending(args.pending, args.pending + 1, terms);
}

template <Activation kActivation>
struct Sloped {
  const uint64_t* inside;

  __device__ float operator()(Place& place, const float* in) const {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(inside);
    bool passes = bytes[place.i / 8] >> (place.i % 8) & 1;
    return passes ? in[0] * math::activation_slope<kActivation>(in[1]) : 0.0f;
  }
};

}  // namespace

// Reads x, and writes y, one bit, and a range for each block; a small second launch merges the
// ranges, and does nothing if none is observed.
void act_fake_quant(const ActFakeQuant& args, const OnCuda& cuda) {
  if (args.n == 0) return;
  int64_t blocks = blocks_for(args.n, kPerBlock);
  with_type(args.dtype, [&]<class T>(T*) {
    with_activation(args.activation, [&]<Activation kActivation>() {
      launch(act_fake_quant_kernel<kActivation, T>, blocks, kThreads, cuda.stream, args);
    });
  });
  if (args.pending) launch(fold_ranges, 1, kThreads, cuda.stream, args, blocks);
}

// Reads dy, x and one bit, and writes dx.
void act_fake_quant_gradient(const ActFakeQuantGradient& args, const OnCuda& cuda) {
  with_type(args.dtype, [&]<class T>(T*) {
    with_shaped_activation(args.activation, [&]<Activation kActivation>() {
      map(cuda, Quantizer{}, args.n, Sloped<kActivation>{args.inside}, static_cast<T*>(args.dx),
          nullptr, static_cast<const T*>(args.dy), static_cast<const T*>(args.x));
    });
  });
}

}  // namespace bitpare
