// Pooling of bytes.
#pragma once
#include "kernels/backend.h"
#include "kernels/int_conv.h"
#include "math/requant.h"

namespace bitpare {

// adaptive: windows of adaptive pooling; kernel, stride and padding are ignored. least: the code
// that pads a maximum. For means, each sum of codes minus `zero` is multiplied by scale / (n
// new_scale), where n counts the elements of the window, and with count_padding also those in the
// padding.
struct IntPool {
  ConvShape shape;  // channels in groups of one
  bool maximum, adaptive, count_padding;
  int64_t pad_bottom, pad_right;
  int64_t divisor;  // of means, in place of n, or 0
  const uint8_t* input;
  int64_t input_step;
  uint8_t* output;
  int64_t output_step;
  uint8_t least;
  float scale, new_scale;
  int32_t zero;
  CodeRange range;
};

template <class Isa>
void int_pool(const IntPool& args, const OnCpu<Isa>& cpu);
void int_pool(const IntPool& args, const OnCuda& cuda);

namespace math {

// Rows and columns of the input that one output sees: [top, bottom) by [left, right), stepping by
// the dilation, and how many elements a mean counts.
struct PoolWindow {
  int64_t image, top, bottom, left, right, count;
};

BITPARE_INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }
BITPARE_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

// The first place at or after 0 that begins at `first` and steps by `step`.
BITPARE_INLINE int64_t first_inside(int64_t first, int64_t step) {
  return first >= 0 ? first : first + (-first + step - 1) / step * step;
}

BITPARE_INLINE PoolWindow window_at(const IntPool& args, int64_t index) {
  const ConvShape& s = args.shape;
  PoolWindow w = {};
  if (args.adaptive) {
    int64_t x = index % s.out_width, y = index / s.out_width % s.out_height;
    w.image = index / s.out_width / s.out_height;
    w.top = y * s.height / s.out_height;
    w.bottom = ((y + 1) * s.height + s.out_height - 1) / s.out_height;
    w.left = x * s.width / s.out_width;
    w.right = ((x + 1) * s.width + s.out_width - 1) / s.out_width;
    w.count = (w.bottom - w.top) * (w.right - w.left);
  } else {
    ConvPixel pixel = pixel_at(s, index);
    int64_t bottom = pixel.top + (s.kernel_height - 1) * s.dilation_height + 1;
    int64_t right = pixel.left + (s.kernel_width - 1) * s.dilation_width + 1;
    int64_t padded = (lesser(bottom, s.height + args.pad_bottom) - pixel.top) *
                     (lesser(right, s.width + args.pad_right) - pixel.left);
    w.image = pixel.image;
    w.top = first_inside(pixel.top, s.dilation_height);
    w.bottom = lesser(bottom, s.height);
    w.left = first_inside(pixel.left, s.dilation_width);
    w.right = lesser(right, s.width);
    int64_t inside = greater(w.bottom - w.top, 0) * greater(w.right - w.left, 0);
    w.count = args.count_padding ? padded : inside;
  }
  if (args.divisor > 0) w.count = args.divisor;
  return w;
}

BITPARE_INLINE int64_t step_of(int64_t dilation) { return dilation > 0 ? dilation : 1; }

}  // namespace math
}  // namespace bitpare
