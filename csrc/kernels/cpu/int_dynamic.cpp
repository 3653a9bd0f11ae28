#include "kernels/int_dynamic.h"

#include "kernels/cpu/rows.h"

namespace bitpare {
namespace {

void to_codes(const IntDynamic& args, int64_t row) {
  const float* x = args.floats + row * args.channels;
  uint8_t* out = args.codes + row * args.step;
  int64_t at = row * args.scale_step;
  int32_t zero = args.zeros[at];
  auto less_zero = static_cast<float>(args.up - zero);
  Vec low = math::splat<Vec>(args.quant_min + less_zero);
  Vec high = math::splat<Vec>(args.quant_max + less_zero);
  Vec least = math::splat<Vec>(args.least), most = math::splat<Vec>(args.most);
  float inverse = 1.0f / args.scales[at];
  for_each_vector(args.channels, [&](int64_t c, int64_t count) {
    Vec v = math::clamp(read(x, c, count), least, most);
    VecInt code = math::Value<Vec>::to_int(math::code_of(v, inverse, low, high));
    store_codes(out + c, code + zero, count);
  });
}

void to_floats(const IntDynamic& args, int64_t row) {
  const uint8_t* codes = args.codes + row * args.step;
  float* y = args.result + row * args.channels;
  int64_t at = row * args.scale_step;
  for (int64_t c = 0; c < args.channels; ++c) {
    y[c] = static_cast<float>(codes[c] - args.zeros[at]) * args.scales[at];
  }
}

}  // namespace

template <>
void int_dynamic(const IntDynamic& args, const OnCpu<BITPARE_ISA>& cpu) {
  parallel(cpu.parallel_for, args.rows, 1 + (1 << 14) / args.channels,
           [&](int64_t begin, int64_t end) {
             for (int64_t row = begin; row < end; ++row) {
               args.floats ? to_codes(args, row) : to_floats(args, row);
             }
           });
}

}  // namespace bitpare
