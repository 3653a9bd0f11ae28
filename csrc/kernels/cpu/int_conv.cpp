#include "kernels/int_conv.h"

#include "kernels/cpu/int_depthwise.h"
#include "kernels/cpu/int_finish.h"

namespace bitpare {
namespace {

// Tiles of output pixels by panels of outputs.

// Vectors of a panel, and how much of a tile the registers hold: rows for 1, 2, 3, 4 panels.
constexpr int kPanelVectors = kPanel / kWidth;
#if defined(__AVX512F__)
constexpr int kMostPanels = 4, kRows[] = {0, 14, 12, 8, 6};
#elif defined(__AVX2__)
constexpr int kMostPanels = 2, kRows[] = {0, 4, 2};
#else
constexpr int kMostPanels = 1, kRows[] = {0, 2};
#endif

struct DenseTile {
  int64_t group, first_panel, first_row;
};

// The addresses of the taps of a tile's pixels.
template <int kTileRows>
struct DenseRows {
  const uint8_t* first[kTileRows];  // of a convolution of single pixels
  math::ConvPixel pixels[kTileRows];
  bool inside;  // no tap of any pixel is in the padding
};

constexpr int64_t kFewTiles = 8;  // too few to be shared out evenly

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
    VecInt fields[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      fields[v] = load_bytes(w + v / kPanelVectors * panel + v % kPanelVectors * 4 * kWidth);
    }
#pragma GCC unroll 4
    for (int q = 0; q < kEach; ++q) {
      VecInt b[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) b[v] = weights_of<kBits>(fields[v], q);
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
            math::value_of(args, row, sums[i][v], multiplier[v], weight_sum, offset));
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

// Computes the tile's rows, or as many as are left.
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
  int64_t tiles = (rows + tile_rows - 1) / tile_rows, outer = s.groups * columns;
  int64_t work = tile_rows * wide * math::panel_bytes(s, 8);
  Finish finish = finish_of(args);
  // Tiles first .. last - 1 of a group's column.
  auto run = [&](int64_t number, int64_t first, int64_t last) {
    int64_t group = number / columns, column = number % columns;
    int64_t here = at_most((column + 1) * wide, panels) - column * wide;
    for (int64_t tile = first; tile < last; ++tile) {
      int64_t row = tile * tile_rows;
      dense_rows<kBits>(args, finish, {group, column * wide, row}, here,
                        at_most(tile_rows, rows - row));
    }
  };
  // If activations outweigh weights, split the work by pixels: each thread rereads what it wrote in
  // the layer before, and no two write to the same cache line. Otherwise split it by output
  // channels.
  int64_t pixels =
      s.batch * (s.height * s.width * s.groups * s.in_channels) + rows * s.groups * s.out_channels;
  if (tiles >= kFewTiles && pixels > outer * wide * math::panel_bytes(s, kBits)) {
    parallel(cpu.parallel_for, tiles, 1 + (1 << 20) / (work * outer),
             [&](int64_t begin, int64_t end) {
               for (int64_t number = 0; number < outer; ++number) run(number, begin, end);
             });
    return;
  }
  parallel(cpu.parallel_for, outer * tiles, 1 + (1 << 20) / work, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      int64_t number = begin / tiles, first = begin - number * tiles;
      int64_t last = at_most(end - number * tiles, tiles);
      run(number, first, last);
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
