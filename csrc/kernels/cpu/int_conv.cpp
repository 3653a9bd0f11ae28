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

// From accumulators to codes, a vector at a time.
struct Finish {
  Vec low, high, sum_low, sum_high;
  VecInt zero, sum_zero;
};

BITPARE_INLINE Finish finish_of(const IntConv& args) {
  return {math::splat<Vec>(args.range.low),     math::splat<Vec>(args.range.high),
          math::splat<Vec>(args.sum_range.low), math::splat<Vec>(args.sum_range.high),
          VecInt{} + args.range.zero,           VecInt{} + args.sum_range.zero};
}

// other: its codes, if the call has some.
BITPARE_INLINE VecInt codes_of(const Finish& f, const IntConv& args, Vec sum, Vec multiplier,
                               VecInt other) {
  Vec code = math::requantized(sum, multiplier, f.low, f.high);
  if (!args.other) return math::Value<Vec>::to_int(code) + f.zero;
  int32_t between = args.range.zero - args.pairing.first_zero;
  Vec first = code + math::splat<Vec>(static_cast<float>(between));
  Vec second = floats(other - args.pairing.second_zero);
  Vec paired = math::paired(first, second, args.pairing, f.sum_low, f.sum_high);
  return math::Value<Vec>::to_int(paired) + f.sum_zero;
}

BITPARE_INLINE VecInt load_codes(const uint8_t* p, int64_t count) {
  if (count >= kWidth) return load_int(p);
  uint8_t whole[kWidth] = {};
  __builtin_memcpy(whole, p, static_cast<uint64_t>(count));
  return load_int(whole);
}

// -- dense: tiles of output pixels by panels of outputs

struct DenseTile {
  int64_t group, first_panel, first_row;
};

template <int kTileRows, int kPanels>
BITPARE_INLINE void multiply(const IntConv& args, const DenseTile& tile,
                             VecInt (&sums)[kTileRows][kPanels * kPanelVectors]) {
  const ConvShape& s = args.shape;
  int64_t taps = math::taps_of(s), panel = math::panel_bytes(s);
  int64_t quads = math::padded_to(s.in_channels, kQuad) / kQuad;
  int64_t panels = math::padded_to(s.out_channels, kPanel) / kPanel;
  const int8_t* weight = args.weight + (tile.group * panels + tile.first_panel) * panel;
  int64_t offset = tile.group * s.in_channels;
  math::ConvPixel pixels[kTileRows];
  for (int i = 0; i < kTileRows; ++i) pixels[i] = math::pixel_at(s, tile.first_row + i);
  for (int64_t tap = 0; tap < taps; ++tap) {
    const uint8_t* rows[kTileRows];
    for (int i = 0; i < kTileRows; ++i) {
      const uint8_t* pixel = math::tap_of(args, pixels[i], tap);
      rows[i] = (pixel ? pixel : args.padding) + offset;
    }
    const int8_t* w = weight + tap * quads * kPanel * kQuad;
    for (int64_t quad = 0; quad < quads; ++quad, w += kPanel * kQuad) {
      VecInt b[kPanels * kPanelVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kPanels * kPanelVectors; ++v) {
        b[v] = load_bytes(w + v / kPanelVectors * panel + v % kPanelVectors * 4 * kWidth);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        VecInt a = repeat_quad(rows[i] + quad * kQuad);
#pragma GCC unroll 16
        for (int v = 0; v < kPanels * kPanelVectors; ++v) sums[i][v] = dot4(sums[i][v], a, b[v]);
      }
    }
  }
}

template <int kTileRows, int kPanels>
void dense_tile(const IntConv& args, const Finish& finish, const DenseTile& tile) {
  VecInt sums[kTileRows][kPanels * kPanelVectors] = {};
  multiply<kTileRows, kPanels>(args, tile, sums);
  const ConvShape& s = args.shape;
  int64_t first = tile.first_panel * kPanel, group_first = tile.group * s.out_channels;
  int64_t number = tile.group * math::padded_to(s.out_channels, kPanel) + first;
#pragma GCC unroll 16
  for (int v = 0; v < kPanels * kPanelVectors; ++v) {
    int64_t at = first + v * kWidth, count = at_most(at + kWidth, s.out_channels) - at;
    if (count <= 0) break;
    VecInt bias = load_int(args.bias + number + v * kWidth);
    Vec multiplier = load(args.multiplier + number + v * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      int64_t row = tile.first_row + i, channel = group_first + at;
      Vec sum = floats(sums[i][v] + bias);
      if (args.to_float) {
        write(static_cast<float*>(args.output) + row * args.output_step + channel, 0, count,
              sum * multiplier);
        continue;
      }
      VecInt other = {};
      if (args.other) other = load_codes(args.other + row * args.other_step + channel, count);
      VecInt codes = codes_of(finish, args, sum, multiplier, other);
      store_codes(static_cast<uint8_t*>(args.output) + row * args.output_step + channel, codes,
                  count);
    }
  }
}

// Rows from the tile's first, as many as the tile has or as are left.
template <int kPanels>
void dense_rows(const IntConv& args, const Finish& finish, DenseTile tile, int64_t rows) {
  if (rows == kRows[kPanels]) return dense_tile<kRows[kPanels], kPanels>(args, finish, tile);
  for (; rows >= 2; rows -= 2, tile.first_row += 2) dense_tile<2, kPanels>(args, finish, tile);
  if (rows > 0) dense_tile<1, kPanels>(args, finish, tile);
}

void dense_rows(const IntConv& args, const Finish& finish, const DenseTile& tile, int64_t panels,
                int64_t rows) {
  if (panels == 1) return dense_rows<1>(args, finish, tile, rows);
#if defined(__AVX2__)
  if (panels == 2) return dense_rows<2>(args, finish, tile, rows);
#endif
#if defined(__AVX512F__)
  if (panels == 3) return dense_rows<3>(args, finish, tile, rows);
  dense_rows<4>(args, finish, tile, rows);
#endif
}

void dense(const IntConv& args, const OnCpu<BITPARE_ISA>& cpu) {
  const ConvShape& s = args.shape;
  int64_t rows = s.batch * s.out_height * s.out_width;
  int64_t panels = math::padded_to(s.out_channels, kPanel) / kPanel;
  // Panels in columns of nearly the same number.
  int64_t columns = (panels + kMostPanels - 1) / kMostPanels;
  int64_t wide = (panels + columns - 1) / columns, tile_rows = kRows[wide];
  int64_t tiles = (rows + tile_rows - 1) / tile_rows;
  int64_t work = tile_rows * wide * math::panel_bytes(s);
  Finish finish = finish_of(args);
  parallel(cpu.parallel_for, s.groups * columns * tiles, 1 + (1 << 19) / work,
           [&](int64_t begin, int64_t end) {
             for (int64_t t = begin; t < end; ++t) {
               int64_t column = t / tiles % columns, first = t % tiles * tile_rows;
               DenseTile tile = {t / tiles / columns, column * wide, first};
               int64_t here = at_most((column + 1) * wide, panels) - column * wide;
               dense_rows(args, finish, tile, here, at_most(tile_rows, rows - first));
             }
           });
}

// -- depthwise: vectors of channels, four taps at a time

constexpr int64_t kBytes = 4 * kWidth;

struct DepthwiseBlock {
  int64_t first, count;  // channels
  VecInt weight[kMostDepthwiseTaps / kQuad][4];
  VecInt bias[4];
  Vec multiplier[4];

  DepthwiseBlock(const IntConv& args, int64_t first_channel) : first(first_channel) {
    int64_t taps = math::taps_of(args.shape), channels = args.shape.groups;
    int64_t step = math::padded_to(channels, kDepthwiseBlock);
    count = at_most(first + kBytes, channels) - first;
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
      }
    }
  }
};

void depthwise_pixel(const IntConv& args, const Finish& finish, const DepthwiseBlock& block,
                     int64_t index) {
  int64_t taps = math::taps_of(args.shape);
  math::ConvPixel pixel = math::pixel_at(args.shape, index);
  VecInt sums[4] = {block.bias[0], block.bias[1], block.bias[2], block.bias[3]};
  for (int64_t tap = 0; tap < taps; tap += kQuad) {
    VecInt t[kQuad] = {}, quads[4];
#pragma GCC unroll 4
    for (int64_t k = 0; k < kQuad; ++k) {
      if (tap + k >= taps) break;
      const uint8_t* at = math::tap_of(args, pixel, tap + k);
      t[k] = load_bytes((at ? at : args.padding) + block.first);
    }
    spread(t, quads);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[j] = dot4(sums[j], quads[j], block.weight[tap / kQuad][j]);
  }
  if (args.to_float) {
    float* out = static_cast<float*>(args.output) + index * args.output_step + block.first;
    for (int j = 0; j < 4; ++j) {
      Vec value = floats(sums[j]) * block.multiplier[j];
      for (int l = 0; l < kWidth; ++l) {
        if (spread_channel(j, l) < block.count) out[spread_channel(j, l)] = value[l];
      }
    }
    return;
  }
  VecInt other[4] = {};
  if (args.other) {
    uint8_t bytes[kBytes] = {};
    __builtin_memcpy(bytes, args.other + index * args.other_step + block.first,
                     static_cast<uint64_t>(block.count));
    VecInt t[kQuad] = {load_bytes(bytes)};
    spread(t, other);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    sums[j] = codes_of(finish, args, floats(sums[j]), block.multiplier[j], other[j]);
  }
  store_bytes(static_cast<uint8_t*>(args.output) + index * args.output_step + block.first,
              gathered(sums), block.count);
}

void depthwise(const IntConv& args, const OnCpu<BITPARE_ISA>& cpu) {
  const ConvShape& s = args.shape;
  int64_t pixels = s.batch * s.out_height * s.out_width;
  int64_t blocks = (s.groups + kBytes - 1) / kBytes;
  int64_t grain = 1 + (1 << 17) / (kBytes * math::taps_of(s));
  Finish finish = finish_of(args);
  parallel(cpu.parallel_for, blocks * pixels, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      DepthwiseBlock block(args, begin / pixels * kBytes);
      int64_t last = at_most(end, (begin / pixels + 1) * pixels);
      for (; begin < last; ++begin) depthwise_pixel(args, finish, block, begin % pixels);
    }
  });
}

}  // namespace

template <>
void int_conv(const IntConv& args, const OnCpu<BITPARE_ISA>& cpu) {
  if (args.kind == ConvKind::depthwise) return depthwise(args, cpu);
  dense(args, cpu);
}

}  // namespace bitpare
