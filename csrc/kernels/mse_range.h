// Chooses the part of each channel's range that has the least squared error.
#pragma once
#include "kernels/backend.h"
#include "kernels/layout/mse_range.h"
#include "math/mse_range.h"

namespace bitpare {

// x: laid out as `layout`, of dtype; one channel lies as one row. low, high: [channels], the range
// of each channel, which is replaced by k / steps of it, with the k of 1 ... steps whose grid has
// the least sum of squared errors. grids: layout::MseGrids; partial: scratch, [steps,
// pieces_of(layout), channels].
struct MseRange {
  const void* x;
  DType dtype;
  ReduceLayout layout;
  float* low;
  float* high;
  RangeRule rule;
  int64_t steps;
  float* grids;
  float* partial;
};

template <class Isa>
void mse_range(const MseRange& args, const OnCpu<Isa>& cpu);
void mse_range(const MseRange& args, const OnCuda& cuda);

namespace math {

BITPARE_INLINE layout::MseGrids grids_of(const MseRange& args) {
  return layout::mse_grids(args.grids, args.steps, args.layout.channels);
}

// Writes the grid of candidate k, counted from 1, of a channel.
BITPARE_INLINE void write_grid(const MseRange& args, int64_t k, int64_t channel) {
  layout::MseGrids grids = grids_of(args);
  int64_t at = (k - 1) * args.layout.channels + channel;
  float low = args.low[channel], high = args.high[channel], unit = unit_of(low, high);
  float fraction = fraction_of(k, args.steps);
  Affine<float> a = affine_of_range(low * fraction, high * fraction, unit, args.rule);
  grids.scale[at] = a.scale;
  grids.inverse[at] = a.inverse;
  grids.zero_point[at] = a.zero_point;
  if (k == 1) grids.inverse_unit[channel] = 1.0f / unit;
}

BITPARE_INLINE Affine<float> read_grid(const MseRange& args, int64_t k, int64_t channel) {
  layout::MseGrids grids = grids_of(args);
  int64_t at = (k - 1) * args.layout.channels + channel;
  return {grids.scale[at], grids.inverse[at], grids.zero_point[at]};
}

BITPARE_INLINE float inverse_unit_of(const MseRange& args, int64_t channel) {
  return grids_of(args).inverse_unit[channel];
}

BITPARE_INLINE void narrow_range(const MseRange& args, int64_t channel, const Choice& best) {
  float fraction = fraction_of(best.k, args.steps);
  args.low[channel] *= fraction;
  args.high[channel] *= fraction;
}

}  // namespace math
}  // namespace bitpare
