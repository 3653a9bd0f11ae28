// Updates the range of a quantizer from the values of one or many steps.
#pragma once
#include "math/control.h"
#include "math/qparams.h"

namespace bitpare {

// How a step's range updates the range: widens it, moves it by `momentum` of the way, or replaces
// it.
enum class RangeUpdate : int32_t { minmax, ema, last };

struct UpdateRule {
  RangeUpdate update = RangeUpdate::minmax;
  float momentum = 0;
  bool symmetric = true;
  bool power_of_two = false;
};

namespace math {

// The content of a pending range: none, a valid range, or one with NaN or infinity.
enum class Pending : int32_t { none, range, broken };

BITPARE_INLINE bool is_range(float low, float high) {
  float top = 0x1.fffffep127f;
  return low >= -top && high <= top && low <= high;
}

BITPARE_INLINE Pending pending_of(float low, float high) {
  float infinity = __builtin_inff();
  if (low == infinity && high == -infinity) return Pending::none;
  return is_range(low, high) ? Pending::range : Pending::broken;
}

// Returns one limit of the updated range, after `merges` ranges: term 0 is the lower. The first
// range is taken as it is; a moving average is the plain mean of the first 1 / momentum ranges.
BITPARE_INLINE float merged_limit(const UpdateRule& rule, int term, float limit, float seen,
                                  int64_t merges) {
  if (merges == 0 || rule.update == RangeUpdate::last) return seen;
  if (rule.update == RangeUpdate::ema) {
    float mean = 1.0f / static_cast<float>(merges + 1);
    return limit + (mean > rule.momentum ? mean : rule.momentum) * (seen - limit);
  }
  return MinMax::combine<float>(term, limit, seen);
}

}  // namespace math
}  // namespace bitpare
