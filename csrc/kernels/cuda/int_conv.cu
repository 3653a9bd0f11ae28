#include "kernels/cuda/blocks.h"
#include "kernels/cuda/bytes.h"
#include "kernels/int_product.h"

namespace bitpare {
namespace {

// -- dense: a block takes a panel of 16 outputs of 64 pixels, a thread an output of 4 of them.
// Threads of one pixel read the same four codes, those of one output the same weights.

constexpr int kPixelsOfThread = 4;
constexpr int64_t kPixelThreads = kThreads / kPanel;
constexpr int64_t kPixelsOfBlock = kPixelThreads * kPixelsOfThread;

__device__ inline const uint8_t* tap_or_padding(const IntConv& args, const math::ConvPixel& pixel,
                                                int64_t tap, int64_t channel) {
  int64_t row = tap / args.shape.kernel_width, column = tap % args.shape.kernel_width;
  const uint8_t* at = math::tap_of(args, pixel, row, column);
  return (at ? at : args.padding) + channel;
}

__global__ void __launch_bounds__(kThreads) dense_kernel(IntConv args, int64_t row_blocks) {
  const ConvShape& s = args.shape;
  int64_t rows = s.batch * s.out_height * s.out_width;
  int64_t panel = blockIdx.x / row_blocks;
  int64_t panels = math::padded_to(s.out_channels, kPanel) / kPanel;
  int64_t group = panel / panels, lane = threadIdx.x % kPanel;
  int64_t of_group = panel % panels * kPanel + lane, number = panel * kPanel + lane;
  int64_t first = blockIdx.x % row_blocks * kPixelsOfBlock + threadIdx.x / kPanel;
  math::ConvPixel pixels[kPixelsOfThread];
  int32_t sums[kPixelsOfThread];
  for (int j = 0; j < kPixelsOfThread; ++j) {
    int64_t row = first + j * kPixelThreads;
    pixels[j] = math::pixel_at(s, row < rows ? row : 0);
    sums[j] = math::start_of(args, number);
  }
  int64_t blocks = math::blocks_of(s, args.bits);
  int each = 8 / args.bits;
  uint32_t highest = (0xffu << (8 - args.bits) & 0xffu) * 0x01010101u;
  const int8_t* weight = args.weight + panel * math::panel_bytes(s, args.bits) + lane * kQuad;
  for (int64_t tap = 0; tap < math::taps_of(s); ++tap) {
    const uint8_t* at[kPixelsOfThread];
    for (int j = 0; j < kPixelsOfThread; ++j) {
      at[j] = tap_or_padding(args, pixels[j], tap, group * s.in_channels);
    }
    for (int64_t block = 0; block < blocks; ++block, weight += math::kBlockBytes) {
      uint32_t fields = *reinterpret_cast<const uint32_t*>(weight);
      for (int q = 0; q < each; ++q) {
        uint32_t w = fields << (8 - args.bits * (q + 1)) & highest;
        for (int j = 0; j < kPixelsOfThread; ++j) {
          sums[j] = dot4_less_128(quad_at(at[j] + (block * each + q) * kQuad), w, sums[j]);
        }
      }
    }
  }
  if (of_group >= s.out_channels) return;
  for (int j = 0; j < kPixelsOfThread; ++j) {
    int64_t row = first + j * kPixelThreads;
    if (row < rows) math::finish(args, row, group * s.out_channels + of_group, number, sums[j]);
  }
}

// -- depthwise: a thread takes 4 channels of 4 pixels, four taps at a time

__global__ void __launch_bounds__(kThreads) depthwise_kernel(IntConv args, int64_t n) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const ConvShape& s = args.shape;
  int64_t rows = s.batch * s.out_height * s.out_width, taps = math::taps_of(s);
  int64_t quads = (s.groups + kQuad - 1) / kQuad, first = i / quads * kPixelsOfThread;
  int64_t channel = i % quads * kQuad, step = math::padded_to(s.groups, kDepthwiseBlock);
  math::ConvPixel pixels[kPixelsOfThread];
  int32_t sums[kPixelsOfThread][kQuad];
  for (int j = 0; j < kPixelsOfThread; ++j) {
    pixels[j] = math::pixel_at(s, first + j < rows ? first + j : 0);
    for (int c = 0; c < kQuad; ++c) sums[j][c] = math::start_of(args, channel + c);
  }
  for (int64_t tap = 0; tap < taps; tap += kQuad) {
    uint32_t weights[kQuad] = {}, codes[kQuad] = {};
    for (int64_t k = 0; k < kQuad && tap + k < taps; ++k) {
      weights[k] = *reinterpret_cast<const uint32_t*>(args.weight + (tap + k) * step + channel);
    }
    transpose(weights);
    for (int j = 0; j < kPixelsOfThread; ++j) {
      for (int64_t k = 0; k < kQuad && tap + k < taps; ++k) {
        codes[k] = quad_at(tap_or_padding(args, pixels[j], tap + k, channel));
      }
      uint32_t of_taps[kQuad] = {codes[0], codes[1], codes[2], codes[3]};
      transpose(of_taps);
      for (int c = 0; c < kQuad; ++c) {
        sums[j][c] = dot4_less_128(of_taps[c], weights[c], sums[j][c]);
      }
    }
  }
  for (int j = 0; j < kPixelsOfThread && first + j < rows; ++j) {
    for (int c = 0; c < kQuad && channel + c < s.groups; ++c) {
      math::finish(args, first + j, channel + c, channel + c, sums[j][c]);
    }
  }
}

}  // namespace

void int_conv(const IntConv& args, const OnCuda& cuda) {
  const ConvShape& s = args.shape;
  int64_t rows = s.batch * s.out_height * s.out_width;
  if (rows == 0) return;
  if (args.kind == ConvKind::depthwise) {
    int64_t quads = (s.groups + kQuad - 1) / kQuad;
    int64_t n = blocks_for(rows, kPixelsOfThread) * quads;
    launch(depthwise_kernel, blocks_for(n, kThreads), kThreads, cuda.stream, args, n);
    return;
  }
  int64_t panels = s.groups * math::padded_to(s.out_channels, kPanel) / kPanel;
  int64_t row_blocks = blocks_for(rows, kPixelsOfBlock);
  launch(dense_kernel, row_blocks * panels, kThreads, cuda.stream, args, row_blocks);
}

}  // namespace bitpare
