// Converts the accumulators of a convolution to the values that it stores, a vector of channels at
// a time.
#pragma once
#include "kernels/cpu/rows.h"
#include "kernels/int_conv.h"

namespace bitpare {
namespace {

BITPARE_INLINE Vec floats(VecInt v) { return math::Value<Vec>::to_float(v); }

BITPARE_INLINE VecInt load_codes(const uint8_t* p, int64_t count) {
  if (count >= kWidth) return load_int(p);
  uint8_t whole[kWidth] = {};
  if (count > 0) __builtin_memcpy(whole, p, static_cast<uint64_t>(count));
  return load_int(whole);
}

// Converts accumulators to codes.
struct Finish {
  Vec low, high, sum_low, sum_high, between;
  VecInt zero, sum_zero;
  VecInt least, most;  // of the last result, as bytes
};

BITPARE_INLINE Finish finish_of(const IntConv& args) {
  const CodeRange& last = args.other ? args.sum_range : args.range;
  int32_t between = args.range.zero - args.pairing.first_zero;
  return {math::splat<Vec>(args.range.low),
          math::splat<Vec>(args.range.high),
          math::splat<Vec>(args.sum_range.low),
          math::splat<Vec>(args.sum_range.high),
          math::splat<Vec>(static_cast<float>(between)),
          VecInt{} + args.range.zero,
          VecInt{} + args.sum_range.zero,
          repeat_byte(static_cast<int32_t>(last.low) + last.zero),
          repeat_byte(static_cast<int32_t>(last.high) + last.zero)};
}

// If everything fits into 32 bits the bounds are left to the bytes: the same codes, rounding
// being monotonic. other: codes, if the call has some.
template <bool kAdds>
BITPARE_INLINE VecInt codes_of(const Finish& f, const IntConv& args, Vec sum, Vec multiplier,
                               VecInt other) {
  if constexpr (kAdds) {
    Vec first = math::requantized(sum, multiplier, f.low, f.high) + f.between;
    Vec second = floats(other - args.pairing.second_zero);
    Vec paired = math::paired(first, second, args.pairing, f.sum_low, f.sum_high);
    return math::Value<Vec>::to_int(paired) + f.sum_zero;
  }
  if (args.fits) return nearest_int(sum * multiplier) + f.zero;
  return math::Value<Vec>::to_int(math::requantized(sum, multiplier, f.low, f.high)) + f.zero;
}

}  // namespace
}  // namespace bitpare
