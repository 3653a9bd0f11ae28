// The part of its own range that each channel is best quantized with.
#pragma once
#include "kernels/backend.h"
#include "math/mse_range.h"
#include "math/reduce.h"

namespace bitpare {

// x: laid out as `layout`, of dtype; one channel lies as one row. low, high: [channels], the range
// of each channel, which k / steps of it replaces, k the one of 1 ... steps whose grid has the
// least sum of squared errors. Scratch: grid: [3 * steps + 1, channels], the scales, inverses and
// zero points of the candidates, then the inverse of each channel's unit; partial: [steps,
// pieces_of(layout), channels].
struct MseRange {
  const void* x;
  DType dtype;
  ReduceLayout layout;
  float* low;
  float* high;
  RangeRule rule;
  int64_t steps;
  float* grid;
  float* partial;
};

template <class Isa>
void mse_range(const MseRange& args, const OnCpu<Isa>& cpu);
void mse_range(const MseRange& args, const OnCuda& cuda);

namespace math {

// The grid of candidate k, from 1, of a channel.
BITPARE_INLINE void write_grid(const MseRange& args, int64_t k, int64_t channel) {
  int64_t channels = args.layout.channels, part = args.steps * channels;
  float low = args.low[channel], high = args.high[channel], unit = unit_of(low, high);
  float fraction = fraction_of(k, args.steps);
  Affine<float> a = affine_of_range(low * fraction, high * fraction, unit, args.rule);
  float* at = args.grid + (k - 1) * channels + channel;
  at[0] = a.scale;
  at[part] = a.inverse;
  at[2 * part] = a.zero_point;
  if (k == 1) args.grid[3 * part + channel] = 1.0f / unit;
}

BITPARE_INLINE Affine<float> read_grid(const MseRange& args, int64_t k, int64_t channel) {
  int64_t channels = args.layout.channels, part = args.steps * channels;
  const float* at = args.grid + (k - 1) * channels + channel;
  return {at[0], at[part], at[2 * part]};
}

BITPARE_INLINE float inverse_unit_of(const MseRange& args, int64_t channel) {
  return args.grid[3 * args.steps * args.layout.channels + channel];
}

BITPARE_INLINE void narrow_range(const MseRange& args, int64_t channel, const Choice& best) {
  float fraction = fraction_of(best.k, args.steps);
  args.low[channel] *= fraction;
  args.high[channel] *= fraction;
}

}  // namespace math
}  // namespace bitpare
