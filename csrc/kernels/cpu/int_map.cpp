#include "kernels/int_map.h"

#include "kernels/cpu/rows.h"

namespace bitpare {
namespace {

void affine_pixel(const IntMap& args, const uint8_t* in, uint8_t* out) {
  Vec low = math::splat<Vec>(args.range.low), high = math::splat<Vec>(args.range.high);
  for (int64_t c = 0; c < args.channels; c += kWidth) {
    int64_t count = at_most(args.channels - c, kWidth);
    Vec x = math::Value<Vec>::to_float(load_int(in + c) - args.zero);
    Vec code = math::affine_code(x, read(args.multiplier + c, 0, count),
                                 read(args.offset + c, 0, count), low, high);
    store_codes(out + c, math::Value<Vec>::to_int(code) + args.range.zero, count);
  }
}

void map_pixel(const IntMap& args, int64_t p) {
  const uint8_t* in = args.input + p * args.input_step;
  uint8_t* out = args.output + p * args.output_step;
  if (args.table) {
    for (int64_t c = 0; c < args.channels; ++c) out[c] = args.table[in[c]];
  } else if (args.multiplier) {
    affine_pixel(args, in, out);
  } else {
    __builtin_memcpy(out, in, static_cast<uint64_t>(args.channels));
  }
}

}  // namespace

template <>
void int_map(const IntMap& args, const OnCpu<BITPARE_ISA>& cpu) {
  parallel(cpu.parallel_for, args.pixels, 1 + (1 << 14) / args.channels,
           [&](int64_t begin, int64_t end) {
             for (int64_t p = begin; p < end; ++p) map_pixel(args, p);
           });
}

}  // namespace bitpare
