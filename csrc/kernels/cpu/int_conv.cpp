#include "kernels/int_conv.h"

#include "kernels/cpu/rows.h"

namespace bitpare {
namespace {

// Vectors of a panel, and how much of a tile the registers hold: rows for 1, 2, 3, 4 panels.
constexpr int kPanelVectors = kPanel / kWidth;
#if defined(__AVX512F__)
constexpr int kMostPanels = 4, kRows[] = {0, 14, 12, 8, 6};
#elif defined(__AVX2__)
constexpr int kMostPanels = 2, kRows[] = {0, 4, 2};
#else
constexpr int kMostPanels = 1, kRows[] = {0, 2};
#endif

BITPARE_INLINE Vec floats(VecInt v) { return math::Value<Vec>::to_float(v); }

BITPARE_INLINE VecInt load_codes(const uint8_t* p, int64_t count) {
  if (count >= kWidth) return load_int(p);
  uint8_t whole[kWidth] = {};
  if (count > 0) __builtin_memcpy(whole, p, static_cast<uint64_t>(count));
  return load_int(whole);
}

// From accumulators to codes.
struct Finish {
  Vec low, high, sum_low, sum_high, between;
  VecInt zero, sum_zero;
  VecInt least, most;  // of the last result, as bytes
};

BITPARE_INLINE Finish finish_of(const IntConv& args) {
  const CodeRange& last = args.other ? args.sum_range : args.range;
  int32_t between = args.range.zero - args.pairing.first_zero;
  return {math::splat<Vec>(args.range.low),
          math::splat<Vec>(args.range.high),
          math::splat<Vec>(args.sum_range.low),
          math::splat<Vec>(args.sum_range.high),
          math::splat<Vec>(static_cast<float>(between)),
          VecInt{} + args.range.zero,
          VecInt{} + args.sum_range.zero,
          repeat_byte(static_cast<int32_t>(last.low) + last.zero),
          repeat_byte(static_cast<int32_t>(last.high) + last.zero)};
}

// Where everything fits into 32 bits the bounds are left to the bytes: the same codes, rounding
// being monotonic. other: codes, if the call has some.
template <bool kAdds>
BITPARE_INLINE VecInt codes_of(const Finish& f, const IntConv& args, Vec sum, Vec multiplier,
                               VecInt other) {
  if constexpr (kAdds) {
    Vec first = math::requantized(sum, multiplier, f.low, f.high) + f.between;
    Vec second = floats(other - args.pairing.second_zero);
    Vec paired = math::paired(first, second, args.pairing, f.sum_low, f.sum_high);
    return math::Value<Vec>::to_int(paired) + f.sum_zero;
  }
  if (args.fits) return nearest_int(sum * multiplier) + f.zero;
  return math::Value<Vec>::to_int(math::requantized(sum, multiplier, f.low, f.high)) + f.zero;
}

// -- dense: tiles of output pixels by panels of outputs

struct DenseTile {
  int64_t group, first_panel, first_row;
};

// Where the taps of a tile's pixels lie.
template <int kTileRows>
struct DenseRows {
  const uint8_t* first[kTileRows];  // of a convolution of single pixels
  math::ConvPixel pixels[kTileRows];
  bool inside;  // no tap of any pixel is in the padding
};

BITPARE_INLINE bool of_single_pixels(const ConvShape& s) {
  return math::taps_of(s) == 1 && s.stride_height == 1 && s.stride_width == 1 && s.pad_top == 0 &&
         s.pad_left == 0 && s.out_height == s.height && s.out_width == s.width;
}

template <int kTileRows>
BITPARE_INLINE DenseRows<kTileRows> rows_of(const IntConv& args, int64_t first_row) {
  const ConvShape& s = args.shape;
  DenseRows<kTileRows> rows;
  rows.inside = true;
  if (of_single_pixels(s)) {
    for (int i = 0; i < kTileRows; ++i) {
      rows.first[i] = args.input + (first_row + i) * args.input_step;
    }
    return rows;
  }
  math::ConvPixel pixel = math::pixel_at(s, first_row);
  int64_t bottom = (s.kernel_height - 1) * s.dilation_height;
  int64_t right = (s.kernel_width - 1) * s.dilation_width;
  for (int i = 0; i < kTileRows; ++i) {
    rows.pixels[i] = pixel;
    rows.inside &= pixel.top >= 0 && pixel.left >= 0 && pixel.top + bottom < s.height &&
                   pixel.left + right < s.width;
    rows.first[i] = args.input +
                    ((pixel.image * s.height + pixel.top) * s.width + pixel.left) * args.input_step;
    math::advance(s, &pixel);
  }
  return rows;
}

// The fields of a block's quad `i` as bytes: they are the bytes' highest bits.
template <int kBits>
BITPARE_INLINE VecInt weights_of(VecInt block, int i) {
  if constexpr (kBits == 8) return block;
  VecUint fields = (VecUint)block << static_cast<uint32_t>(8 - kBits * (i + 1));
  return (VecInt)fields & repeat_byte(0xff << (8 - kBits) & 0xff);
}

template <int kBits, int kTileRows, int kVectors>
BITPARE_INLINE void multiply(const uint8_t* const* rows, const int8_t* w, int64_t panel,
                             int64_t blocks, VecInt (&sums)[kTileRows][kVectors]) {
  constexpr int kEach = 8 / kBits;
  for (int64_t block = 0; block < blocks; ++block, w += math::kBlockBytes) {
    VecInt held[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      held[v] = load_bytes(w + v / kPanelVectors * panel + v % kPanelVectors * 4 * kWidth);
    }
#pragma GCC unroll 4
    for (int q = 0; q < kEach; ++q) {
      VecInt b[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) b[v] = weights_of<kBits>(held[v], q);
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        VecInt a = repeat_quad(rows[i] + (block * kEach + q) * kQuad);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sums[i][v] = dot4(sums[i][v], a, b[v]);
      }
    }
  }
}

template <int kBits, int kTileRows, int kVectors>
BITPARE_INLINE void multiply_taps(const IntConv& args, const DenseTile& tile,
                                  VecInt (&sums)[kTileRows][kVectors]) {
  const ConvShape& s = args.shape;
  int64_t panel = math::panel_bytes(s, kBits), blocks = math::blocks_of(s, kBits);
  int64_t panels = math::padded_to(s.out_channels, kPanel) / kPanel;
  const int8_t* w = args.weight + (tile.group * panels + tile.first_panel) * panel;
  int64_t offset = tile.group * s.in_channels;
  DenseRows<kTileRows> rows = rows_of<kTileRows>(args, tile.first_row);
  for (int64_t row = 0; row < s.kernel_height; ++row) {
    for (int64_t column = 0; column < s.kernel_width; ++column) {
      const uint8_t* at[kTileRows];
      if (rows.inside) {
        int64_t pixels = row * s.dilation_height * s.width + column * s.dilation_width;
        for (int i = 0; i < kTileRows; ++i) {
          at[i] = rows.first[i] + pixels * args.input_step + offset;
        }
      } else {
        for (int i = 0; i < kTileRows; ++i) {
          const uint8_t* pixel = math::tap_of(args, rows.pixels[i], row, column);
          at[i] = (pixel ? pixel : args.padding) + offset;
        }
      }
      multiply<kBits>(at, w, panel, blocks, sums);
      w += blocks * math::kBlockBytes;
    }
  }
}

template <bool kAdds, int kTileRows, int kVectors>
BITPARE_INLINE void store_tile(const IntConv& args, const Finish& finish, const DenseTile& tile,
                               const Vec (&multiplier)[kVectors], int64_t channel, int64_t count,
                               const VecInt (&sums)[kTileRows][kVectors]) {
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    int64_t row = tile.first_row + i;
    const uint8_t* other = kAdds ? args.other + row * args.other_step + channel : nullptr;
    VecInt codes[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      VecInt added = {};
      if constexpr (kAdds) added = load_codes(other + v * kWidth, count - v * kWidth);
      codes[v] = codes_of<kAdds>(finish, args, floats(sums[i][v]), multiplier[v], added);
    }
    VecInt bytes = clamped_bytes(packed<kVectors>(codes), finish.least, finish.most);
    store_bytes(static_cast<uint8_t*>(args.output) + row * args.output_step + channel, bytes,
                count);
  }
}

// The floats that accumulators of input row `row` stand for.
BITPARE_INLINE Vec value_of(const IntConv& args, int64_t row, VecInt sum, Vec multiplier,
                            VecInt weight_sum, Vec offset) {
  Vec value;
  if (args.scales) {
    int64_t at = row * args.scale_step;
    VecInt less_zero = sum - args.zeros[at] * weight_sum;
    value = math::dequantized(floats(less_zero), args.scales[at], multiplier, offset);
  } else {
    value = floats(sum) * multiplier;
  }
  return math::clamp(value, math::splat<Vec>(args.least), math::splat<Vec>(args.most));
}

template <int kTileRows, int kVectors>
BITPARE_INLINE void store_floats(const IntConv& args, const DenseTile& tile,
                                 const Vec (&multiplier)[kVectors], int64_t number, int64_t channel,
                                 int64_t count, const VecInt (&sums)[kTileRows][kVectors]) {
  for (int v = 0; v < kVectors && v * kWidth < count; ++v) {
    VecInt weight_sum = {};
    Vec offset = {};
    if (args.scales) {
      weight_sum = load_int(args.weight_sums + number + v * kWidth);
      offset = load(args.offset + number + v * kWidth);
    }
    for (int i = 0; i < kTileRows; ++i) {
      int64_t row = tile.first_row + i;
      float* out = static_cast<float*>(args.output) + row * args.output_step;
      write(out, channel + v * kWidth, at_most(count - v * kWidth, kWidth),
            value_of(args, row, sums[i][v], multiplier[v], weight_sum, offset));
    }
  }
}

template <int kBits, int kTileRows, int kPanels>
void dense_tile(const IntConv& args, const Finish& finish, const DenseTile& tile) {
  constexpr int kVectors = kPanels * kPanelVectors;
  const ConvShape& s = args.shape;
  int64_t first = tile.first_panel * kPanel, channel = tile.group * s.out_channels + first;
  int64_t number = tile.group * math::padded_to(s.out_channels, kPanel) + first;
  int64_t count = at_most(s.out_channels - first, kVectors * kWidth);
  VecInt sums[kTileRows][kVectors];
  Vec multiplier[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    VecInt bias = load_int(args.bias + number + v * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) sums[i][v] = bias;
  }
  multiply_taps<kBits>(args, tile, sums);
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) multiplier[v] = load(args.multiplier + number + v * kWidth);
  if (args.to_float) {
    store_floats(args, tile, multiplier, number, channel, count, sums);
  } else if (args.other) {
    store_tile<true>(args, finish, tile, multiplier, channel, count, sums);
  } else {
    store_tile<false>(args, finish, tile, multiplier, channel, count, sums);
  }
}

// Rows from the tile's first, as many as the tile has or as are left.
template <int kBits, int kPanels>
void dense_rows(const IntConv& args, const Finish& finish, DenseTile tile, int64_t rows) {
  if (rows == kRows[kPanels]) return dense_tile<kBits, kRows[kPanels], kPanels>(args, finish, tile);
  for (; rows >= 2; rows -= 2, tile.first_row += 2) {
    dense_tile<kBits, 2, kPanels>(args, finish, tile);
  }
  if (rows > 0) dense_tile<kBits, 1, kPanels>(args, finish, tile);
}

template <int kBits>
void dense_rows(const IntConv& args, const Finish& finish, const DenseTile& tile, int64_t panels,
                int64_t rows) {
  if (panels == 1) return dense_rows<kBits, 1>(args, finish, tile, rows);
#if defined(__AVX2__)
  if (panels == 2) return dense_rows<kBits, 2>(args, finish, tile, rows);
#endif
#if defined(__AVX512F__)
  if (panels == 3) return dense_rows<kBits, 3>(args, finish, tile, rows);
  dense_rows<kBits, 4>(args, finish, tile, rows);
#endif
}

template <int kBits>
void dense(const IntConv& args, const OnCpu<BITPARE_ISA>& cpu) {
  const ConvShape& s = args.shape;
  int64_t rows = s.batch * s.out_height * s.out_width;
  int64_t panels = math::padded_to(s.out_channels, kPanel) / kPanel;
  // Panels in columns of nearly the same number.
  int64_t columns = (panels + kMostPanels - 1) / kMostPanels;
  int64_t wide = (panels + columns - 1) / columns, tile_rows = kRows[wide];
  int64_t tiles = (rows + tile_rows - 1) / tile_rows;
  int64_t work = tile_rows * wide * math::panel_bytes(s, 8);
  Finish finish = finish_of(args);
  parallel(cpu.parallel_for, s.groups * columns * tiles, 1 + (1 << 20) / work,
           [&](int64_t begin, int64_t end) {
             for (int64_t t = begin; t < end; ++t) {
               int64_t column = t / tiles % columns, first = t % tiles * tile_rows;
               DenseTile tile = {t / tiles / columns, column * wide, first};
               int64_t here = at_most((column + 1) * wide, panels) - column * wide;
               dense_rows<kBits>(args, finish, tile, here, at_most(tile_rows, rows - first));
             }
           });
}

// -- depthwise: vectors of channels, four taps at a time

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
    Vec value =
        value_of(args, index, sums[j], block.multiplier[j], block.weight_sum[j], block.added[j]);
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

// Output pixels begin .. end - 1.
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
          const uint8_t* found = math::tap_of(args, pixel, row, column);
          at[tap] = (found ? found : args.padding) + block.first;
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
  parallel(cpu.parallel_for, blocks * pixels, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      int64_t number = begin / pixels, first = begin - number * pixels;
      int64_t last = at_most(end - number * pixels, pixels);
      DepthwiseBlock block(args, number * kBytes);
      if (taps == 9) {
        depthwise_pixels<9>(args, finish, block, first, last);
      } else if (taps == 25) {
        depthwise_pixels<25>(args, finish, block, first, last);
      } else {
        depthwise_pixels<0>(args, finish, block, first, last);
      }
      begin += last - first;
    }
  });
}

}  // namespace

template <>
void int_conv(const IntConv& args, const OnCpu<BITPARE_ISA>& cpu) {
  if (args.kind == ConvKind::depthwise) return depthwise(args, cpu);
  if (args.bits == 4) return dense<4>(args, cpu);
  if (args.bits == 2) return dense<2>(args, cpu);
  dense<8>(args, cpu);
}

}  // namespace bitpare
