// Depthwise convolutions: vectors of channels, four taps at a time.
#pragma once
#include "kernels/cpu/int_finish.h"

namespace bitpare {
namespace {

constexpr int64_t kBytes = 4 * kWidth;

struct DepthwiseBlock {
  int64_t first, count;  // channels
  VecInt weight[kMostDepthwiseTaps / kQuad][4];
  VecInt bias[4], weight_sum[4];
  Vec multiplier[4], added[4];
  int64_t offset[kMostDepthwiseTaps];  // of each tap from the first, in bytes

  DepthwiseBlock(const IntConv& args, int64_t first_channel) : first(first_channel) {
    const ConvShape& s = args.shape;
    int64_t taps = math::taps_of(s), step = math::padded_to(s.groups, kDepthwiseBlock);
    count = at_most(kBytes, s.groups - first);
    for (int64_t tap = 0; tap < taps; tap += kQuad) {
      VecInt t[kQuad] = {};
      for (int64_t k = 0; k < kQuad && tap + k < taps; ++k) {
        t[k] = load_bytes(args.weight + (tap + k) * step + first);
      }
      spread(t, weight[tap / kQuad]);
    }
    for (int j = 0; j < 4; ++j) {
      for (int l = 0; l < kWidth; ++l) {
        int64_t channel = first + spread_channel(j, l);
        bias[j][l] = args.bias[channel];
        multiplier[j][l] = args.multiplier[channel];
        weight_sum[j][l] = args.scales ? args.weight_sums[channel] : 0;
        added[j][l] = args.scales ? args.offset[channel] : 0.0f;
      }
    }
    for (int64_t tap = 0; tap < taps; ++tap) {
      int64_t row = tap / s.kernel_width, column = tap % s.kernel_width;
      offset[tap] =
          (row * s.dilation_height * s.width + column * s.dilation_width) * args.input_step;
    }
  }
};

// at(tap): where a tap's channels lie. kTaps: how many there are, or 0 for `taps`.
template <int kTaps, class At>
BITPARE_INLINE void depthwise_sums(const DepthwiseBlock& block, int64_t taps, VecInt* sums, At at) {
  int64_t n = kTaps > 0 ? kTaps : taps;
#pragma GCC unroll 8
  for (int64_t tap = 0; tap < n; tap += kQuad) {
    VecInt t[kQuad] = {}, quads[4];
#pragma GCC unroll 4
    for (int64_t k = 0; k < kQuad; ++k) {
      if (tap + k < n) t[k] = load_bytes(at(tap + k));
    }
    spread(t, quads);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[j] = dot4(sums[j], quads[j], block.weight[tap / kQuad][j]);
  }
}

void store_depthwise_floats(const IntConv& args, const DepthwiseBlock& block, int64_t index,
                            const VecInt* sums) {
  float* out = static_cast<float*>(args.output) + index * args.output_step + block.first;
  for (int j = 0; j < 4; ++j) {
    Vec value = math::value_of(args, index, sums[j], block.multiplier[j], block.weight_sum[j],
                               block.added[j]);
    for (int l = 0; l < kWidth; ++l) {
      if (spread_channel(j, l) < block.count) out[spread_channel(j, l)] = value[l];
    }
  }
}

template <bool kAdds>
BITPARE_INLINE void store_depthwise(const IntConv& args, const Finish& finish,
                                    const DepthwiseBlock& block, int64_t index, VecInt* sums) {
  VecInt other[4] = {};
  if constexpr (kAdds) {
    uint8_t bytes[kBytes] = {};
    __builtin_memcpy(bytes, args.other + index * args.other_step + block.first,
                     static_cast<uint64_t>(block.count));
    VecInt t[kQuad] = {load_bytes(bytes)};
    spread(t, other);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    sums[j] = codes_of<kAdds>(finish, args, floats(sums[j]), block.multiplier[j], other[j]);
  }
  store_bytes(static_cast<uint8_t*>(args.output) + index * args.output_step + block.first,
              clamped_bytes(gathered(sums), finish.least, finish.most), block.count);
}

// Computes output pixels begin .. end - 1.
template <int kTaps>
void depthwise_pixels(const IntConv& args, const Finish& finish, const DepthwiseBlock& block,
                      int64_t begin, int64_t end) {
  const ConvShape& s = args.shape;
  int64_t taps = math::taps_of(s), bottom = (s.kernel_height - 1) * s.dilation_height;
  int64_t right = (s.kernel_width - 1) * s.dilation_width;
  math::ConvPixel pixel = math::pixel_at(s, begin);
  for (int64_t index = begin; index < end; ++index) {
    VecInt sums[4] = {block.bias[0], block.bias[1], block.bias[2], block.bias[3]};
    if (pixel.top >= 0 && pixel.left >= 0 && pixel.top + bottom < s.height &&
        pixel.left + right < s.width) {
      const uint8_t* at = math::tap_of(args, pixel, 0, 0) + block.first;
      depthwise_sums<kTaps>(block, taps, sums, [&](int64_t tap) { return at + block.offset[tap]; });
    } else {
      const uint8_t* at[kMostDepthwiseTaps];
      int64_t tap = 0;
      for (int64_t row = 0; row < s.kernel_height; ++row) {
        for (int64_t column = 0; column < s.kernel_width; ++column, ++tap) {
          const uint8_t* pixel_of_tap = math::tap_of(args, pixel, row, column);
          at[tap] = (pixel_of_tap ? pixel_of_tap : args.padding) + block.first;
        }
      }
      depthwise_sums<0>(block, taps, sums, [&](int64_t t) { return at[t]; });
    }
    if (args.to_float) {
      store_depthwise_floats(args, block, index, sums);
    } else if (args.other) {
      store_depthwise<true>(args, finish, block, index, sums);
    } else {
      store_depthwise<false>(args, finish, block, index, sums);
    }
    math::advance(s, &pixel);
  }
}

void depthwise(const IntConv& args, const OnCpu<BITPARE_ISA>& cpu) {
  const ConvShape& s = args.shape;
  int64_t pixels = s.batch * s.out_height * s.out_width, taps = math::taps_of(s);
  int64_t blocks = (s.groups + kBytes - 1) / kBytes;
  int64_t grain = 1 + (1 << 18) / (kBytes * taps);
  Finish finish = finish_of(args);
  // A thread takes pixels, all channels of each: see dense().
  parallel(cpu.parallel_for, pixels, 1 + grain / blocks, [&](int64_t begin, int64_t end) {
    for (int64_t number = 0; number < blocks; ++number) {
      DepthwiseBlock block(args, number * kBytes);
      if (taps == 9) {
        depthwise_pixels<9>(args, finish, block, begin, end);
      } else if (taps == 25) {
        depthwise_pixels<25>(args, finish, block, begin, end);
      } else {
        depthwise_pixels<0>(args, finish, block, begin, end);
      }
    }
  });
}

}  // namespace
}  // namespace bitpare
