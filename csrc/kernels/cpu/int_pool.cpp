#include "kernels/int_pool.h"

#include "kernels/cpu/rows.h"

namespace bitpare {
namespace {

// f(codes) for a vector of channels at each place of a window.
template <class F>
BITPARE_INLINE void for_each_place(const IntPool& args, const math::PoolWindow& w, int64_t channel,
                                   F f) {
  const ConvShape& s = args.shape;
  for (int64_t y = w.top; y < w.bottom; y += math::step_of(s.dilation_height)) {
    for (int64_t x = w.left; x < w.right; x += math::step_of(s.dilation_width)) {
      const uint8_t* p = args.input + ((w.image * s.height + y) * s.width + x) * args.input_step;
      f(load_int(p + channel));
    }
  }
}

void pool_pixel(const IntPool& args, int64_t index) {
  math::PoolWindow w = math::window_at(args, index);
  uint8_t* out = args.output + index * args.output_step;
  int64_t channels = args.shape.groups;
  Vec multiplier = {}, low = math::splat<Vec>(args.range.low),
      high = math::splat<Vec>(args.range.high);
  if (!args.maximum) {
    multiplier = math::splat<Vec>(math::mean_multiplier(args.scale, args.new_scale, w.count));
  }
  for (int64_t c = 0; c < channels; c += kWidth) {
    VecInt result = VecInt{} + (args.maximum ? args.least : 0), zero = VecInt{} + args.zero;
    if (args.maximum) {
      for_each_place(args, w, c, [&](VecInt codes) { result = codes > result ? codes : result; });
    } else {
      for_each_place(args, w, c, [&](VecInt codes) { result += codes - zero; });
      Vec sum = math::Value<Vec>::to_float(result);
      result = math::Value<Vec>::to_int(math::requantized(sum, multiplier, low, high));
      result += args.range.zero;
    }
    store_codes(out + c, result, channels - c);
  }
}

}  // namespace

template <>
void int_pool(const IntPool& args, const OnCpu<BITPARE_ISA>& cpu) {
  const ConvShape& s = args.shape;
  int64_t pixels = s.batch * s.out_height * s.out_width;
  int64_t window = math::greater(s.height * s.width / (s.out_height * s.out_width), 1);
  parallel(cpu.parallel_for, pixels, 1 + (1 << 14) / (s.groups * window),
           [&](int64_t begin, int64_t end) {
             for (int64_t p = begin; p < end; ++p) pool_pixel(args, p);
           });
}

}  // namespace bitpare
