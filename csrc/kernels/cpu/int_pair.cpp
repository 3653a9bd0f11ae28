#include "kernels/int_pair.h"

#include "kernels/cpu/rows.h"

namespace bitpare {
namespace {

void pair_pixel(const IntPair& args, int64_t p) {
  const uint8_t* first = args.first + p * args.first_step;
  const uint8_t* second = args.second + p / args.repeat * args.second_step;
  uint8_t* out = args.output + p * args.output_step;
  Vec low = math::splat<Vec>(args.range.low), high = math::splat<Vec>(args.range.high);
  for (int64_t c = 0; c < args.channels; c += kWidth) {
    Vec a = math::Value<Vec>::to_float(load_int(first + c) - args.pairing.first_zero);
    Vec b = math::Value<Vec>::to_float(load_int(second + c) - args.pairing.second_zero);
    Vec code = math::paired(a, b, args.pairing, low, high);
    store_codes(out + c, math::Value<Vec>::to_int(code) + args.range.zero, args.channels - c);
  }
}

}  // namespace

template <>
void int_pair(const IntPair& args, const OnCpu<BITPARE_ISA>& cpu) {
  parallel(cpu.parallel_for, args.pixels, 1 + (1 << 15) / args.channels,
           [&](int64_t begin, int64_t end) {
             for (int64_t p = begin; p < end; ++p) pair_pixel(args, p);
           });
}

}  // namespace bitpare
