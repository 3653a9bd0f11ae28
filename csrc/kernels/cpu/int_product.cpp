// This kernel serves tests on machines without a GPU: convolutions on the CPU compute their
// products themselves.
#include "kernels/int_product.h"

#include "kernels/cpu/rows.h"

namespace bitpare {

template <>
void int_patches(const IntProduct& args, const OnCpu<BITPARE_ISA>& cpu) {
  parallel(cpu.parallel_for, args.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      math::ConvPixel pixel = math::pixel_at(args.conv.shape, args.first + row);
      int8_t* out = args.patches + row * args.inputs;
      for (int64_t k = 0; k < args.inputs; ++k) out[k] = math::patch_value(args, pixel, k);
    }
  });
}

template <>
void int_finish(const IntProduct& args, const OnCpu<BITPARE_ISA>& cpu) {
  parallel(cpu.parallel_for, args.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t o = 0; o < args.conv.shape.out_channels; ++o) {
        auto sum = static_cast<uint32_t>(args.sums[row * args.sums_step + o]) +
                   static_cast<uint32_t>(math::start_of(args.conv, o));
        math::finish(args.conv, args.first + row, o, o, static_cast<int32_t>(sum));
      }
    }
  });
}

}  // namespace bitpare
