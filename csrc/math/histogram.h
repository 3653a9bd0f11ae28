// A histogram whose range doubles as values grow, and the range of quantization chosen from it.
//
// `bins` is a power of two; half of them lie on either side of 0 over [-limit, limit], limit a
// power of two or 0 where nothing was seen. With w = limit / (bins / 2), bin bins / 2 + m holds the
// values in (m w, (m + 1) w], bin bins / 2 - 1 - m those in [-(m + 1) w, -m w); 0 itself counts
// with the first positive bin. Closed on the outside, two neighbours of a side are one bin at twice
// the limit, whatever values they hold.
#pragma once
#include "math/log.h"
#include "math/mse_range.h"
#include "math/reduce.h"

namespace bitpare {

constexpr int32_t kLeastBins = 64, kMostBins = 65536;

enum class RangeMethod : int32_t { percentile, mse, entropy };

namespace math {

// The terms a batch adds to the range: the largest finite magnitude (-1: none), and 1 where a value
// was not finite.
struct Largest {
  template <class V>
  BITPARE_INLINE V identity(int term) {
    return splat<V>(term == 0 ? -1.0f : 0.0f);
  }
  template <class V>
  BITPARE_INLINE V combine(int, V a, V b) {
    return b > a ? b : a;
  }
};

template <class V>
BITPARE_INLINE void largest_terms(V x, V* terms) {
  V magnitude = absolute(x), top = splat<V>(0x1.fffffep127f);
  terms[0] = magnitude <= top ? magnitude : splat<V>(-1.0f);
  terms[1] = magnitude <= top ? splat<V>(0.0f) : splat<V>(1.0f);
}

BITPARE_INLINE float widened_limit(float limit, float largest) {
  if (largest < 0.0f) return limit;
  float wanted = power_of_two_over(largest);
  return limit < wanted ? wanted : limit;
}

// The bin of x, -1 where x is not finite. per_bin: bins / 2 / limit. What lies beyond the largest
// limit counts in the outermost bins.
template <class V>
BITPARE_INLINE typename Value<V>::Int symmetric_bin(V x, V per_bin, int32_t bins) {
  V zero = splat<V>(0.0f), last = splat<V>(static_cast<float>(bins) * 0.5f - 1.0f);
  V magnitude = absolute(x), one = splat<V>(1.0f);
  V place = clamp(-Value<V>::floor(-(magnitude * per_bin)) - one, zero, last);
  V bin = x < zero ? last - place : last + one + place;
  return Value<V>::to_int(magnitude <= splat<V>(0x1.fffffep127f) ? bin : -one);
}

BITPARE_INLINE float bins_per_unit(float limit, int32_t bins) {
  return static_cast<float>(bins) * 0.5f / limit;
}

// Returns the place of the count of the m-th bin from 0 in a row.
BITPARE_INLINE int64_t place_of(int64_t m, bool negative, int64_t half) {
  return negative ? half - 1 - m : half + m;
}

// How many old bins of a side make one new one, as a power of two; at most 2^31.
BITPARE_INLINE int32_t doublings(float from, float to) {
  int32_t k = (Value<float>::bits(to) - Value<float>::bits(from)) >> 23;
  return k < 31 ? k : 31;
}

// The count of the m-th bin from 0 once the limit has doubled k times.
BITPARE_INLINE int64_t folded_count(const int64_t* row, int64_t m, bool negative, int64_t half,
                                    int32_t k) {
  int64_t end = (m + 1) << k, sum = 0;
  if (end > half) end = half;
  for (int64_t old = m << k; old < end; ++old) sum += row[place_of(old, negative, half)];
  return sum;
}

// A row of counts as running sums, [bins + 1] each: how many values, how many bins that are not
// empty, and the sum of count * log(count), over the bins below a given one. The last two serve the
// entropy alone.
struct HistogramRow {
  const int64_t* below;
  const int32_t* filled;
  const double* weight;
  int32_t bins;
};

// A range around 0: the bins on either side.
struct Span {
  int32_t down, up;
};
BITPARE_INLINE int32_t widest_side(const Span& s) { return s.down > s.up ? s.down : s.up; }

BITPARE_INLINE int64_t total_of(const HistogramRow& r) { return r.below[r.bins]; }
BITPARE_INLINE int64_t kept_by(const HistogramRow& r, const Span& s) {
  return r.below[r.bins / 2 + s.up] - r.below[r.bins / 2 - s.down];
}

// Returns the smallest e in [0, end] for which `holds` is true; it is true at `end`, and once true
// it stays true.
template <class Predicate>
BITPARE_INLINE int32_t first_where(int32_t end, Predicate holds) {
  int32_t low = 0;
  while (low < end) {
    int32_t middle = (low + end) / 2;
    if (holds(middle)) {
      end = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The smallest span that leaves out at most `below` values under it and `above` over it.
BITPARE_INLINE Span span_without(const HistogramRow& r, int64_t below, int64_t above) {
  int32_t half = r.bins / 2;
  int64_t total = total_of(r);
  int32_t down = first_where(half, [&](int32_t e) { return r.below[half - e] <= below; });
  int32_t up = first_where(half, [&](int32_t e) { return total - r.below[half + e] <= above; });
  return {down, up};
}

// Returns the span of the outermost bins that are not empty.
BITPARE_INLINE Span outermost(const HistogramRow& r, bool symmetric) {
  Span s = span_without(r, 0, 0);
  int32_t widest = widest_side(s);
  return symmetric ? Span{widest, widest} : s;
}

// left_out: the share of the values that may lie outside, half of it on either side where both have
// values and the range need not be symmetric. At least one value is kept.
BITPARE_INLINE Span percentile_span(const HistogramRow& r, double left_out, bool symmetric) {
  int64_t total = total_of(r);
  int64_t cut = static_cast<int64_t>(left_out * static_cast<double>(total));
  if (cut >= total) cut = total - 1;
  if (symmetric) {
    int32_t e =
        first_where(r.bins / 2, [&](int32_t m) { return total - kept_by(r, {m, m}) <= cut; });
    return {e, e};
  }
  Span all = outermost(r, false);
  if (all.down == 0) return span_without(r, 0, cut);
  if (all.up == 0) return span_without(r, cut, 0);
  int64_t side = static_cast<int64_t>(left_out * 0.5 * static_cast<double>(total));
  return span_without(r, side, side);
}

// Candidate k of 1 ... n cuts the outermost span at k / n of its largest magnitude, rounded up to
// whole bins; there is one for each magnitude, up to kMostCandidates. A long tail on one side is
// thus cut before the other side.
constexpr int32_t kMostCandidates = 1024;

BITPARE_INLINE int32_t candidates_of(const Span& all) {
  int32_t widest = widest_side(all);
  return widest < kMostCandidates ? widest : kMostCandidates;
}

BITPARE_INLINE Span shrunk(const Span& all, int32_t k, int32_t n) {
  if (n < 1) return {0, 0};  // counts that are no counts
  int32_t most = (widest_side(all) * k + n - 1) / n;
  return {all.down < most ? all.down : most, all.up < most ? all.up : most};
}

struct Limits {
  float low, high;
};

BITPARE_INLINE Limits limits_of(const Span& s, float limit, int32_t bins) {
  float width = limit / (static_cast<float>(bins) * 0.5f);
  return {0.0f - static_cast<float>(s.down) * width, static_cast<float>(s.up) * width};
}

// The middle of a bin, in units of the limit.
template <class V>
BITPARE_INLINE V bin_centre(V bin, int32_t bins) {
  float half = static_cast<float>(bins) * 0.5f;
  return (bin + splat<V>(0.5f - half)) * splat<V>(1.0f / half);
}

// count * log(count), what a bin adds to HistogramRow::weight.
BITPARE_INLINE double weight_of(int64_t count) {
  if (count <= 0) return 0.0;
  return static_cast<double>(count) *
         static_cast<double>(natural_logarithm(static_cast<float>(count)));
}

// The entropy calibration of TensorRT (Migacz, "8-bit inference with TensorRT", GTC 2017): the
// Kullback-Leibler divergence of P, the bins of a span with what lies outside added to its ends,
// from Q, the bins merged into `levels` equal parts, each spread evenly over its bins that are not
// empty in P. Both signs are kept apart, and a part begins at the first bin that is not before it.
struct Divergence {
  Span span;
  int32_t levels;
  float total, inside;  // values in all, and in the span
};

BITPARE_INLINE Divergence divergence_of(const HistogramRow& r, const Span& span, int32_t levels) {
  int32_t bins = span.down + span.up;
  return {span, levels < bins ? levels : bins, static_cast<float>(total_of(r)),
          static_cast<float>(kept_by(r, span))};
}

BITPARE_INLINE int32_t first_bin_of(const Divergence& d, int32_t bins, int64_t level) {
  int64_t width = d.span.down + d.span.up;
  int64_t offset = (level * width + d.levels - 1) / d.levels;
  return bins / 2 - d.span.down + static_cast<int32_t>(offset);
}

// Returns what one level adds to total * divergence: sum of p log p - p log(mean of q) over its
// bins.
BITPARE_INLINE float divergence_of_level(const HistogramRow& r, const Divergence& d,
                                         int32_t level) {
  int32_t begin = first_bin_of(d, r.bins, level), end = first_bin_of(d, r.bins, level + 1);
  int64_t count = r.below[end] - r.below[begin], mass = count;
  int32_t filled = r.filled[end] - r.filled[begin];
  double weight = r.weight[end] - r.weight[begin];
  auto add_outside = [&](int64_t here, int64_t outside) {
    if (outside == 0) return;
    if (here == 0) ++filled;
    mass += outside;
    weight += weight_of(here + outside) - weight_of(here);
  };
  int64_t under = level == 0 ? r.below[begin] : 0;
  if (level == 0) add_outside(r.below[begin + 1] - r.below[begin], under);
  if (level == d.levels - 1) {
    int64_t last = r.below[end] - r.below[end - 1] + (end - begin == 1 ? under : 0);
    add_outside(last, total_of(r) - r.below[end]);
  }
  if (mass == 0) return 0.0f;
  if (count == 0) return __builtin_inff();
  float mean = natural_logarithm(static_cast<float>(count) / static_cast<float>(filled));
  return static_cast<float>(weight - static_cast<double>(mass) * static_cast<double>(mean));
}

// sum: of divergence_of_level over the levels.
BITPARE_INLINE float divergence(const Divergence& d, float sum) {
  return sum / d.total + natural_logarithm(d.inside / d.total);
}

}  // namespace math
}  // namespace bitpare
