// Convolution and linear layers on bytes: int32 sums of products, which are exact on every
// instruction set, converted to the results while they are in registers.
#pragma once
#include "kernels/backend.h"
#include "math/requant.h"

namespace bitpare {

// Weights are packed by pack_dense() or pack_depthwise().
enum class ConvKind : int32_t { dense, depthwise };

struct ConvShape {
  int64_t batch, height, width, out_height, out_width;
  int64_t groups, in_channels, out_channels;  // channels: of one group
  int64_t kernel_height, kernel_width, stride_height, stride_width;
  int64_t pad_top, pad_left, dilation_height, dilation_width;
};

// input: [batch, height, width] pixels of `input_step` bytes; output alike, bytes or floats. Bytes
// beyond a pixel's channels are read (and multiplied by 0), so kSlackBytes may follow the last.
// weight: packed, `bits` each (8; of dense ones also 4 or 2, codes that count times 2^(8 - bits)).
// weight_sums: [groups, padded outputs], of each output's weights. bias: the same, the bias less
// the zero point's share. multiplier: the same; times it, an accumulator is a code, or a float.
// padding: a pixel of zero points. other: null, or what is added to the result's codes by
// `pairing`, of which they are the first. least, most: bounds of results that are floats. fits:
// accumulators times multipliers, and sums, stay within 32 bits.
// scales: null, or of an input whose grid was found at run time, with zeros: one of each, or with a
// scale_step of 1 one for each pixel. Then the bias is 0, the result floats, with `offset` added.
struct IntConv {
  ConvKind kind;
  ConvShape shape;
  const uint8_t* input;
  int64_t input_step;
  const int8_t* weight;
  const int32_t* bias;
  const float* multiplier;
  const uint8_t* padding;
  CodeRange range;
  void* output;
  int64_t output_step;
  bool to_float;
  const uint8_t* other;
  int64_t other_step;
  Pairing pairing;
  CodeRange sum_range;
  bool fits;
  int32_t bits;
  const int32_t* weight_sums;
  float least, most;
  const float* scales;
  const int32_t* zeros;
  int64_t scale_step;
  const float* offset;
};

template <class Isa>
void int_conv(const IntConv& args, const OnCpu<Isa>& cpu);
void int_conv(const IntConv& args, const OnCuda& cuda);

constexpr int64_t kSlackBytes = 64;
// Outputs are worked on by sixteens, inputs by fours.
constexpr int64_t kPanel = 16;
constexpr int64_t kQuad = 4;
// Depthwise weights and their numbers are padded to this many channels.
constexpr int64_t kDepthwiseBlock = 64;
constexpr int64_t kMostDepthwiseTaps = 64;

namespace math {

BITPARE_INLINE int64_t padded_to(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

BITPARE_INLINE int64_t taps_of(const ConvShape& s) { return s.kernel_height * s.kernel_width; }

BITPARE_INLINE bool is_depthwise(const ConvShape& s) {
  return s.in_channels == 1 && s.out_channels == 1 && s.groups > 1 &&
         taps_of(s) <= kMostDepthwiseTaps;
}

constexpr int64_t kBlockBytes = kPanel * kQuad;

// Blocks of a panel's weights for one tap. A block is [kPanel, kQuad] bytes, each of 8 / bits
// fields, which belong to as many quads of inputs: the first quad's are the lowest.
BITPARE_INLINE int64_t blocks_of(const ConvShape& s, int32_t bits) {
  int64_t quads = padded_to(s.in_channels, kQuad) / kQuad, each = 8 / bits;
  return (quads + each - 1) / each;
}

// Bytes of a panel's weights: [taps, blocks].
BITPARE_INLINE int64_t panel_bytes(const ConvShape& s, int32_t bits) {
  return taps_of(s) * blocks_of(s, bits) * kBlockBytes;
}

BITPARE_INLINE int64_t weight_bytes(const ConvShape& s, ConvKind kind, int32_t bits) {
  if (kind == ConvKind::depthwise) return taps_of(s) * padded_to(s.groups, kDepthwiseBlock);
  return s.groups * padded_to(s.out_channels, kPanel) / kPanel * panel_bytes(s, bits);
}

// How many numbers there are for the outputs: biases, multipliers.
BITPARE_INLINE int64_t padded_outputs(const ConvShape& s, ConvKind kind) {
  if (kind == ConvKind::depthwise) return padded_to(s.groups, kDepthwiseBlock);
  return s.groups * padded_to(s.out_channels, kPanel);
}

// Returns the place of output o, counted over all groups, among those numbers.
BITPARE_INLINE int64_t place_of_output(const ConvShape& s, ConvKind kind, int64_t o) {
  if (kind == ConvKind::depthwise) return o;
  return o / s.out_channels * padded_to(s.out_channels, kPanel) + o % s.out_channels;
}

// The place of weight [o, c, tap] among the packed ones: a byte, and its lowest bit there.
struct WeightPlace {
  int64_t byte;
  int32_t shift;
};

BITPARE_INLINE WeightPlace place_of_weight(const ConvShape& s, ConvKind kind, int32_t bits,
                                           int64_t o, int64_t c, int64_t tap) {
  if (kind == ConvKind::depthwise) return {tap * padded_to(s.groups, kDepthwiseBlock) + o, 0};
  int64_t panel = place_of_output(s, kind, o) / kPanel, lane = place_of_output(s, kind, o) % kPanel;
  int64_t each = 8 / bits, quad = c / kQuad;
  int64_t block = panel * taps_of(s) * blocks_of(s, bits) + tap * blocks_of(s, bits) + quad / each;
  return {block * kBlockBytes + lane * kQuad + c % kQuad, static_cast<int32_t>(quad % each) * bits};
}

// The beginning of the window of an output pixel.
struct ConvPixel {
  int64_t image, top, left;
};

BITPARE_INLINE ConvPixel pixel_at(const ConvShape& s, int64_t index) {
  int64_t x = index % s.out_width, rest = index / s.out_width;
  return {rest / s.out_height, rest % s.out_height * s.stride_height - s.pad_top,
          x * s.stride_width - s.pad_left};
}

// The window of the next output pixel, without a division.
BITPARE_INLINE void advance(const ConvShape& s, ConvPixel* pixel) {
  pixel->left += s.stride_width;
  if (pixel->left < s.out_width * s.stride_width - s.pad_left) return;
  pixel->left = -s.pad_left;
  pixel->top += s.stride_height;
  if (pixel->top < s.out_height * s.stride_height - s.pad_top) return;
  pixel->top = -s.pad_top;
  ++pixel->image;
}

// The input pixel that a tap reads: null in the padding.
BITPARE_INLINE const uint8_t* tap_of(const IntConv& args, const ConvPixel& pixel, int64_t row,
                                     int64_t column) {
  const ConvShape& s = args.shape;
  int64_t y = pixel.top + row * s.dilation_height, x = pixel.left + column * s.dilation_width;
  if (y < 0 || x < 0 || y >= s.height || x >= s.width) return nullptr;
  return args.input + ((pixel.image * s.height + y) * s.width + x) * args.input_step;
}

// Converts the accumulators of an input row to floats. weight_sum, offset: read if the grid is
// dynamic.
template <class V, class I>
BITPARE_INLINE V value_of(const IntConv& args, int64_t row, I sum, V multiplier, I weight_sum,
                          V offset) {
  V value;
  if (args.scales) {
    int64_t at = row * args.scale_step;
    I less_zero = sum - args.zeros[at] * weight_sum;
    value = dequantized(Value<V>::to_float(less_zero), args.scales[at], multiplier, offset);
  } else {
    value = Value<V>::to_float(sum) * multiplier;
  }
  return clamp(value, splat<V>(args.least), splat<V>(args.most));
}

}  // namespace math
}  // namespace bitpare
