#include "kernels/minmax.h"

#include "kernels/cpu/reduce.h"

namespace bitpare {
namespace {

BITPARE_INLINE Vec range_terms(Vec* terms, Vec x) {
  terms[0] = x;
  terms[1] = x;
  terms[2] = x == x ? Vec{} : x;
  return x;
}

// Adds one to the bin of each lane's value, channel by channel.
BITPARE_INLINE void count_bins(const MinMaxOf& args, const Lanes& lanes, int64_t* counts, Vec v) {
  int64_t step = math::channels_innermost(args.layout) ? 1 : 0;
  auto limits_of = [&](int64_t c, float* low, float* inverse_width) {
    *low = args.histogram_low[c];
    *inverse_width = math::inverse_bin_width(*low, args.histogram_high[c], args.bins);
  };
  float low[kWidth] = {}, inverse_width[kWidth] = {};
  for (int64_t l = 0; l < (step ? lanes.count : 1); ++l) {
    limits_of(lanes.channel + l, low + l, inverse_width + l);
  }
  Vec from = step ? load(low) : math::splat<Vec>(low[0]);
  Vec inverse = step ? load(inverse_width) : math::splat<Vec>(inverse_width[0]);
  VecInt bin = math::bin_of(v, from, inverse, args.bins);
  for (int64_t l = 0; l < lanes.count; ++l) {
    if (bin[l] >= 0) ++counts[(lanes.channel + step * l) * args.bins + bin[l]];
  }
}

}  // namespace

// Reads x once, with three running vectors in registers. For a histogram each slot walks a range of
// its own and counts into bins of its own.
template <>
void minmax(const MinMaxOf& args, const OnCpu<BITPARE_ISA>& cpu) {
  const ReduceLayout& layout = args.layout;
  Quantizer q;
  q.channel = {layout.inner, layout.channels};
  auto finish = [&](int64_t c, const float* terms) {
    args.low[c] = math::limit_of(terms[0], terms[2]);
    args.high[c] = math::limit_of(terms[1], terms[2]);
  };
  with_type(args.dtype, [&]<class T>(T*) {
    auto x = static_cast<const T*>(args.x);
    if (!args.counts) {
      auto formula = [](const Lanes&, Vec* terms, Vec v)
                         [[gnu::always_inline]] { return range_terms(terms, v); };
      reduce<math::MinMax, kMinMaxTerms>(cpu.parallel_for, q, layout, args.partial, finish, formula,
                                         static_cast<T*>(nullptr), x);
      return;
    }
    int64_t tasks = tasks_of(layout);
    parallel(cpu.parallel_for, args.slots, 1, [&](int64_t first, int64_t last) {
      for (int64_t slot = first; slot < last; ++slot) {
        int64_t* counts = args.counts + slot * layout.channels * args.bins;
        auto formula = [&, counts](const Lanes& lanes, Vec* terms, Vec v) {
          count_bins(args, lanes, counts, v);
          return range_terms(terms, v);
        };
        reduce_tasks<math::MinMax, kMinMaxTerms>(q, layout, tasks * slot / args.slots,
                                                 tasks * (slot + 1) / args.slots, args.partial,
                                                 formula, static_cast<T*>(nullptr), x);
      }
    });
    finish_channels<math::MinMax, kMinMaxTerms>(cpu.parallel_for, layout, args.partial, finish);
  });
}

}  // namespace bitpare
