// Merges the pending ranges of many quantizers into their ranges, and updates scales and zero
// points.
#pragma once
#include "kernels/backend.h"
#include "math/update_ranges.h"

namespace bitpare {

// One quantizer of n scales.
//   pending, range: [2, n], lows then highs; pending is (inf, -inf) where nothing was seen, and
//   afterwards everywhere.
//   scale: [n]. zero_point: [n] or null. count: [2], the steps merged and those skipped because a
//   pending value was not finite. limit: see RangeRule.
struct QuantizerState {
  float* pending;
  float* range;
  float* scale;
  int32_t* zero_point;
  int64_t* count;
  const Control* control;
  int64_t n;
  float limit;
};

// states: [size], on the host.
struct UpdateRanges {
  const QuantizerState* states;
  int64_t size;
  UpdateRule rule;
};

namespace math {

// Updates scale j of a quantizer. merge: whether the step's range is merged; otherwise the range
// stays. `merges` so far: count[0] before this step.
BITPARE_INLINE void update_scale(const QuantizerState& s, const UpdateRule& rule, int64_t j,
                                 bool merge, int64_t merges) {
  float low = s.range[j], high = s.range[s.n + j];
  float least = s.pending[j], most = s.pending[s.n + j];
  s.pending[j] = __builtin_inff();
  s.pending[s.n + j] = -__builtin_inff();
  if (merge && pending_of(least, most) == Pending::range) {
    int64_t before = is_range(low, high) ? merges : 0;
    s.range[j] = low = merged_limit(rule, 0, low, least, before);
    s.range[s.n + j] = high = merged_limit(rule, 1, high, most, before);
  }
  if ((!merge && merges == 0) || !is_range(low, high)) return;
  RangeRule grid = {static_cast<float>(s.control->quant_min),
                    static_cast<float>(s.control->quant_max), rule.symmetric, rule.power_of_two,
                    s.limit};
  Qparams p = qparams(low, high, grid);
  s.scale[j] = p.scale;
  if (s.zero_point) s.zero_point[j] = p.zero_point;
}

}  // namespace math

template <class Isa>
void update_ranges(const UpdateRanges& args, const OnCpu<Isa>& cpu);
void update_ranges(const UpdateRanges& args, const OnCuda& cuda);

}  // namespace bitpare
