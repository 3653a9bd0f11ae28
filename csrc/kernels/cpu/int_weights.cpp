#include "kernels/int_weights.h"

#include "kernels/cpu/rows.h"

namespace bitpare {
namespace {

constexpr int kPanelVectors = kPanel / kWidth;
// Rows that share the unpacking of a weight, and panels side by side, whose sums do not wait for
// each other.
constexpr int kMostRows = 4;
#if defined(__AVX512F__)
constexpr int kMostPanels = 4;
#elif defined(__AVX2__)
constexpr int kMostPanels = 2;
#else
constexpr int kMostPanels = 1;
#endif

struct Tile {
  int64_t first_panel, first_row;
};

// Adds the products of inputs begin .. end - 1 of a group to the sums.
template <int kBits, int kRows, int kVectors>
BITPARE_INLINE void add_products(const IntWeights& args, const Tile& tile, int64_t begin,
                                 int64_t end, const Vec (&zero)[kVectors],
                                 Vec (&sums)[kRows][kVectors]) {
  constexpr int kEach = 8 / kBits;
  int64_t panel = math::field_bytes(args.inputs, kBits);
  const uint8_t* first = args.weight + tile.first_panel * panel;
  const float* x = args.x + tile.first_row * args.x_step;
  for (int64_t byte = begin / kEach; byte * kEach < end; ++byte) {
    VecInt fields[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      fields[v] =
          load_int(first + v / kPanelVectors * panel + byte * kPanel + v % kPanelVectors * kWidth);
    }
#pragma GCC unroll 8
    for (int f = 0; f < kEach; ++f) {
      int64_t k = byte * kEach + f;
      if (k < begin || k >= end) continue;
      Vec w[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        w[v] = math::weight_value<kBits>(fields[v], f * kBits, args.factor, args.first, zero[v]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        Vec a = math::splat<Vec>(x[i * args.x_step + k]);
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sums[i][v] += a * w[v];
      }
    }
  }
}

template <int kBits, int kRows, int kPanels>
void weights_tile(const IntWeights& args, const Tile& tile) {
  constexpr int kVectors = kPanels * kPanelVectors;
  int64_t groups = (args.inputs + args.group - 1) / args.group;
  Vec totals[kRows][kVectors] = {};
  for (int64_t g = 0; g < groups; ++g) {
    Vec zero[kVectors] = {}, sums[kRows][kVectors] = {};
    auto at = [&](int v) {
      return ((tile.first_panel + v / kPanelVectors) * groups + g) * kPanel +
             v % kPanelVectors * kWidth;
    };
    for (int v = 0; v < kVectors && args.zero; ++v) zero[v] = load(args.zero + at(v));
    int64_t end = at_most((g + 1) * args.group, args.inputs);
    add_products<kBits>(args, tile, g * args.group, end, zero, sums);
    for (int v = 0; v < kVectors; ++v) {
      Vec scale = load(args.scale + at(v));
      for (int i = 0; i < kRows; ++i) totals[i][v] += sums[i][v] * scale;
    }
  }
  int64_t first = tile.first_panel * kPanel;
  for (int v = 0; v < kVectors && first + v * kWidth < args.outputs; ++v) {
    int64_t o = first + v * kWidth, count = at_most(args.outputs - o, kWidth);
    Vec offset = load(args.offset + o);
    for (int i = 0; i < kRows; ++i) {
      Vec value = math::clamp(totals[i][v] + offset, math::splat<Vec>(args.least),
                              math::splat<Vec>(args.most));
      write(args.y + (tile.first_row + i) * args.y_step, o, count, value);
    }
  }
}

template <int kBits, int kPanels>
void weights_rows(const IntWeights& args, Tile tile, int64_t rows) {
  if (rows == kMostRows) return weights_tile<kBits, kMostRows, kPanels>(args, tile);
  for (; rows > 0; --rows, ++tile.first_row) weights_tile<kBits, 1, kPanels>(args, tile);
}

template <int kBits>
void weights(const IntWeights& args, const OnCpu<BITPARE_ISA>& cpu) {
  int64_t panels = math::padded_to(args.outputs, kPanel) / kPanel;
  int64_t columns = (panels + kMostPanels - 1) / kMostPanels;
  int64_t tiles = (args.rows + kMostRows - 1) / kMostRows;
  int64_t work = kMostRows * kMostPanels * kPanel * args.inputs;
  parallel(cpu.parallel_for, columns * tiles, 1 + (1 << 18) / work,
           [&](int64_t begin, int64_t end) {
             for (int64_t t = begin; t < end; ++t) {
               Tile tile = {t / tiles * kMostPanels, t % tiles * kMostRows};
               int64_t here = at_most(kMostPanels, panels - tile.first_panel);
               int64_t rows = at_most(kMostRows, args.rows - tile.first_row);
               if (here == kMostPanels) {
                 weights_rows<kBits, kMostPanels>(args, tile, rows);
               } else {
                 for (int64_t p = 0; p < here; ++p, ++tile.first_panel) {
                   weights_rows<kBits, 1>(args, tile, rows);
                 }
               }
             }
           });
}

}  // namespace

template <>
void int_weights(const IntWeights& args, const OnCpu<BITPARE_ISA>& cpu) {
  switch (args.bits) {
    case 8:
      return weights<8>(args, cpu);
    case 4:
      return weights<4>(args, cpu);
    case 2:
      return weights<2>(args, cpu);
    default:
      return weights<1>(args, cpu);
  }
}

}  // namespace bitpare
