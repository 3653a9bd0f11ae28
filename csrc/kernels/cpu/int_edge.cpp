#include "kernels/int_edge.h"

#include "kernels/cpu/rows.h"

namespace bitpare {
namespace {

// Converts pixels first .. last - 1 of an image, one channel after the other: the floats of a
// channel are often neighbours in memory, and the bytes of a few channels are close.
bool to_codes(const IntEdge& args, int64_t image, int64_t first, int64_t last) {
  Vec low = math::splat<Vec>(args.range.low), high = math::splat<Vec>(args.range.high);
  float inverse = 1.0f / args.scale;
  uint64_t strange = 0;
  for (int64_t c = 0; c < args.channels; ++c) {
    const float* x = args.floats + image * args.image_step + c * args.channel_step;
    uint8_t* out = args.codes + (image * args.pixels + first) * args.step + c;
    for (int64_t p = first; p < last; p += kWidth) {
      int64_t count = at_most(last - p, kWidth);
      float values[kWidth] = {};
      if (args.pixel_step == 1) {
        __builtin_memcpy(values, x + p, static_cast<uint64_t>(count) * sizeof(float));
      } else {
        for (int64_t l = 0; l < count; ++l) values[l] = x[(p + l) * args.pixel_step];
      }
      Vec v = load(values);
      VecInt code = math::Value<Vec>::to_int(math::code_of(v, inverse, low, high));
      code += args.range.zero;
      strange |= ~equal_bits(v, v) & ((uint64_t{1} << kWidth) - 1);
      for (int64_t l = 0; l < count; ++l, out += args.step) *out = static_cast<uint8_t>(code[l]);
    }
  }
  return strange != 0;
}

// Converts planes of floats to pixels of at most four bytes, a vector of pixels at a time.
bool to_codes_of_few_channels(const IntEdge& args, int64_t image, int64_t first, int64_t last) {
  Vec low = math::splat<Vec>(args.range.low), high = math::splat<Vec>(args.range.high);
  float inverse = 1.0f / args.scale;
  uint64_t strange = 0;
  for (int64_t p = first; p < last; p += kWidth) {
    int64_t count = at_most(last - p, kWidth);
    VecInt quads = {};
    for (int64_t c = 0; c < args.channels; ++c) {
      const float* x = args.floats + image * args.image_step + c * args.channel_step;
      Vec v = read(x, p, count);
      VecInt code = math::Value<Vec>::to_int(math::code_of(v, inverse, low, high));
      quads |= (code + args.range.zero) << static_cast<int32_t>(8 * c);
      strange |= ~equal_bits(v, v) & ((uint64_t{1} << kWidth) - 1);
    }
    store_bytes(args.codes + (image * args.pixels + p) * args.step, quads, count * args.step);
  }
  return strange != 0;
}

// Converts rows whose channels are neighbours.
bool to_codes_by_pixel(const IntEdge& args, int64_t image, int64_t first, int64_t last) {
  Vec low = math::splat<Vec>(args.range.low), high = math::splat<Vec>(args.range.high);
  float inverse = 1.0f / args.scale;
  uint64_t strange = 0;
  for (int64_t p = first; p < last; ++p) {
    const float* x = args.floats + image * args.image_step + p * args.pixel_step;
    uint8_t* out = args.codes + (image * args.pixels + p) * args.step;
    for (int64_t c = 0; c < args.channels; c += kWidth) {
      int64_t count = at_most(args.channels - c, kWidth);
      Vec v = read(x, c, count);
      VecInt code = math::Value<Vec>::to_int(math::code_of(v, inverse, low, high));
      strange |= ~equal_bits(v, v) & ((uint64_t{1} << kWidth) - 1);
      store_codes(out + c, code + args.range.zero, count);
    }
  }
  return strange != 0;
}

void to_floats(const IntEdge& args, int64_t image, int64_t first, int64_t last) {
  for (int64_t p = first; p < last; ++p) {
    float* y = args.result + image * args.image_step + p * args.pixel_step;
    const uint8_t* code = args.codes + (image * args.pixels + p) * args.step;
    for (int64_t c = 0; c < args.channels; ++c) {
      y[c * args.channel_step] = static_cast<float>(code[c] - args.range.zero) * args.scale;
    }
  }
}

}  // namespace

template <>
void int_edge(const IntEdge& args, const OnCpu<BITPARE_ISA>& cpu) {
  int64_t grain = 1 + (1 << 14) / args.channels;
  parallel(cpu.parallel_for, args.images * args.pixels, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      int64_t image = begin / args.pixels, first = begin % args.pixels;
      int64_t last = at_most(args.pixels, first + end - begin);
      bool strange = false;
      if (!args.floats) {
        to_floats(args, image, first, last);
      } else if (args.channel_step == 1) {
        strange = to_codes_by_pixel(args, image, first, last);
      } else if (args.pixel_step == 1 && args.step == 4 && args.channels <= 4) {
        strange = to_codes_of_few_channels(args, image, first, last);
      } else {
        strange = to_codes(args, image, first, last);
      }
      if (strange) __atomic_store_n(args.nan, true, __ATOMIC_RELAXED);
      begin += last - first;
    }
  });
}

}  // namespace bitpare
