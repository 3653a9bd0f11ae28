// A dense convolution by a library's matrix product: writes the patches that go into it, and
// converts its sums to the results.
#pragma once
#include "kernels/backend.h"
#include "kernels/int_conv.h"

namespace bitpare {

// Output pixels first .. first + rows - 1 of a convolution of one group. patches: [rows, inputs],
// the codes that each pixel's taps read, minus 128, tap by tap; 0 past them. sums: [rows,
// sums_step], the products of the patches and the weights of each output.
struct IntProduct {
  IntConv conv;
  int64_t first, rows, inputs, sums_step;
  int8_t* patches;
  const int32_t* sums;
};

template <class Isa>
void int_patches(const IntProduct& args, const OnCpu<Isa>& cpu);
void int_patches(const IntProduct& args, const OnCuda& cuda);

// Converts sums to the values that the convolution stores.
template <class Isa>
void int_finish(const IntProduct& args, const OnCpu<Isa>& cpu);
void int_finish(const IntProduct& args, const OnCuda& cuda);

namespace math {

// A patch's value at k.
BITPARE_INLINE int8_t patch_value(const IntProduct& args, const ConvPixel& pixel, int64_t k) {
  const ConvShape& s = args.conv.shape;
  int64_t tap = k / s.in_channels, c = k % s.in_channels;
  if (tap >= taps_of(s)) return 0;
  const uint8_t* at = tap_of(args.conv, pixel, tap / s.kernel_width, tap % s.kernel_width);
  return static_cast<int8_t>((at ? at : args.conv.padding)[c] ^ 0x80);
}

// The accumulator of an output before any product with codes minus 128.
BITPARE_INLINE int32_t start_of(const IntConv& args, int64_t number) {
  return static_cast<int32_t>(static_cast<uint32_t>(args.bias[number]) +
                              128u * static_cast<uint32_t>(args.weight_sums[number]));
}

// Stores output o of a pixel. number: where the output's numbers stand.
BITPARE_INLINE void finish(const IntConv& args, int64_t row, int64_t o, int64_t number,
                           int32_t sum) {
  int64_t place = row * args.output_step + o;
  if (args.to_float) {
    int32_t weight_sum = args.scales ? args.weight_sums[number] : 0;
    float offset = args.scales ? args.offset[number] : 0.0f;
    static_cast<float*>(args.output)[place] =
        value_of(args, row, sum, args.multiplier[number], weight_sum, offset);
    return;
  }
  float code = requantized(static_cast<float>(sum), args.multiplier[number], args.range.low,
                           args.range.high);
  int32_t zero = args.range.zero;
  if (args.other) {
    float first = code + static_cast<float>(zero - args.pairing.first_zero);
    int32_t other = args.other[row * args.other_step + o];
    float second = static_cast<float>(other - args.pairing.second_zero);
    code = paired(first, second, args.pairing, args.sum_range.low, args.sum_range.high);
    zero = args.sum_range.zero;
  }
  static_cast<uint8_t*>(args.output)[place] =
      static_cast<uint8_t>(static_cast<int32_t>(code) + zero);
}

}  // namespace math
}  // namespace bitpare
