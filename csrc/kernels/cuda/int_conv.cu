#include "kernels/cuda/blocks.h"
#include "kernels/int_conv.h"

namespace bitpare {
namespace {

// Where weight [o, c, tap] stands, less what depends on c alone.
struct Weights {
  const int8_t* first;
  int64_t quad_step;

  __device__ Weights(const IntConv& args, int64_t o, int64_t tap)
      : first(args.weight + math::place_of_weight(args.shape, args.kind, o, 0, tap)),
        quad_step(kPanel * kQuad) {}
  __device__ int32_t at(int64_t c) const { return first[c / kQuad * quad_step + c % kQuad]; }
};

__device__ inline int32_t sum_of_products(const IntConv& args, const math::ConvPixel& pixel,
                                          int64_t o) {
  const ConvShape& s = args.shape;
  bool depthwise = args.kind == ConvKind::depthwise;
  int64_t offset = depthwise ? o : o / s.out_channels * s.in_channels;
  int32_t sum = args.bias[math::place_of_output(s, args.kind, o)];
  for (int64_t tap = 0; tap < math::taps_of(s); ++tap) {
    const uint8_t* at = math::tap_of(args, pixel, tap / s.kernel_width, tap % s.kernel_width);
    const uint8_t* x = (at ? at : args.padding) + offset;
    Weights weights(args, o, tap);
    int64_t channels = depthwise ? 1 : s.in_channels;
    for (int64_t c = 0; c < channels; ++c) sum += static_cast<int32_t>(x[c]) * weights.at(c);
  }
  return sum;
}

// A thread takes an output of a pixel; neighbours take neighbouring outputs.
__global__ void __launch_bounds__(kThreads) int_conv_kernel(IntConv args, int64_t n) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const ConvShape& s = args.shape;
  int64_t outputs = s.groups * s.out_channels, row = i / outputs, o = i % outputs;
  float sum = static_cast<float>(sum_of_products(args, math::pixel_at(s, row), o));
  float multiplier = args.multiplier[math::place_of_output(s, args.kind, o)];
  if (args.to_float) {
    static_cast<float*>(args.output)[row * args.output_step + o] = sum * multiplier;
    return;
  }
  float code = math::requantized(sum, multiplier, args.range.low, args.range.high);
  int32_t zero = args.range.zero;
  if (args.other) {
    float first = code + static_cast<float>(zero - args.pairing.first_zero);
    int32_t other = args.other[row * args.other_step + o];
    float second = static_cast<float>(other - args.pairing.second_zero);
    code = math::paired(first, second, args.pairing, args.sum_range.low, args.sum_range.high);
    zero = args.sum_range.zero;
  }
  static_cast<uint8_t*>(args.output)[row * args.output_step + o] =
      static_cast<uint8_t>(static_cast<int32_t>(code) + zero);
}

}  // namespace

void int_conv(const IntConv& args, const OnCuda& cuda) {
  const ConvShape& s = args.shape;
  int64_t n = s.batch * s.out_height * s.out_width * s.groups * s.out_channels;
  if (n == 0) return;
  launch(int_conv_kernel, blocks_for(n, kThreads), kThreads, cuda.stream, args, n);
}

}  // namespace bitpare
