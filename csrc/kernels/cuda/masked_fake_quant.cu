#include "kernels/cuda/mask.h"
#include "kernels/masked_fake_quant.h"

namespace bitpare {
namespace {

// Each thread takes eight neighbours: it reads x and its bits of the mask, and writes y and one
// byte of bits.
template <class T>
__global__ void __launch_bounds__(kThreads)
    masked_fake_quant_kernel(MaskedFakeQuant args, int64_t n) {
  int64_t first = blockIdx.x * kPerBlock + static_cast<int64_t>(threadIdx.x) * kPerThread;
  if (first >= (n + 63) / 64 * 64) return;
  uint32_t inside = 0;
  if (first < n) {
    const Quantizer& q = args.quantizer;
    float values[kPerThread];
    load_pack(static_cast<const T*>(args.x), first, n, values);
    uint32_t kept = mask_bits(args.mask, args.layout, first, n);
    ChannelWalk walk = ChannelWalk::at(q, first, n);
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) {
      auto c =
          math::quantize<Rounding::nearest>(values[e], walk.affine, q.quant_min, q.quant_max, 0.0f);
      inside |= static_cast<uint32_t>(c.rounded == c.code && first + e < n) << e;
      values[e] = kept >> e & 1 ? math::dequantize(c.code, walk.affine) : 0.0f;
      ChannelWalk::next(q, &walk);
    }
    if (args.masks_gradient) inside &= kept;
    store_pack(static_cast<T*>(args.y), first, n, values);
  }
  if (args.inside) {
    reinterpret_cast<uint8_t*>(args.inside)[first / 8] = static_cast<uint8_t>(inside);
  }
}

}  // namespace

void masked_fake_quant(const MaskedFakeQuant& args, const OnCuda& cuda) {
  int64_t n = args.layout.n();
  if (n == 0) return;
  with_type(args.dtype, [&]<class T>(T*) {
    launch(masked_fake_quant_kernel<T>, blocks_for((n + 63) / 64 * 64, kPerBlock), kThreads,
           cuda.stream, args, n);
  });
}

}  // namespace bitpare
