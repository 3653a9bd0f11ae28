#include "kernels/mse_range.h"

#include "kernels/cpu/reduce.h"

namespace bitpare {
namespace {

// The grids of candidates first .. first + kTogether - 1 and what a vector of x is measured in.
struct GridOf {
  const float* grid;
  const float* inverse_unit;
  int64_t channels, part;
  bool innermost;
  Vec quant_min, quant_max;

  [[gnu::always_inline]] Vec read(const float* p, const Lanes& lanes) const {
    if (!innermost) return math::splat<Vec>(p[lanes.channel]);
    const float* at = p + lanes.channel;
    return lanes.count == kWidth ? load(at) : load_some(at, lanes.count);
  }

  [[gnu::always_inline]] Vec operator()(const Lanes& lanes, Vec* terms, Vec x) const {
    Vec v = x * read(inverse_unit, lanes);
    for (int64_t t = 0; t < kTogether; ++t) {
      const float* p = grid + t * channels;
      math::Affine<Vec> a = {read(p, lanes), read(p + part, lanes), read(p + 2 * part, lanes)};
      terms[t] = math::squared_error(v, a, quant_min, quant_max);
    }
    return x;
  }
};

}  // namespace

// A core takes a chunk of x and prices every candidate while it lies in the first cache, four for
// each load; then the candidates of a channel are compared.
template <>
void mse_range(const MseRange& args, const OnCpu<BITPARE_ISA>& cpu) {
  const ReduceLayout& l = args.layout;
  Quantizer q;
  q.channel = {l.inner, l.channels};
  int64_t steps = padded_steps(args.steps), pieces = math::pieces_of(l);
  parallel(cpu.parallel_for, l.channels, kGrain / 16 / steps + 1, [&](int64_t first, int64_t last) {
    for (int64_t k = 1; k <= steps; ++k) {
      for (int64_t c = first; c < last; ++c) math::write_grid(args, k, c);
    }
  });
  GridOf all = {args.grid, args.grid + 3 * steps * l.channels, l.channels, steps * l.channels,
                math::channels_innermost(l), math::splat<Vec>(args.rule.quant_min),
                math::splat<Vec>(args.rule.quant_max)};
  with_type(args.dtype, [&]<class T>(T*) {
    auto x = static_cast<const T*>(args.x);
    int64_t grain = task_grain(l) / steps + 1;
    parallel(cpu.parallel_for, tasks_of(l), grain, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        for (int64_t k = 0; k < steps; k += kTogether) {
          GridOf some = all;
          some.grid += k * l.channels;
          reduce_tasks<math::Sum, kTogether>(q, l, task, task + 1,
                                             args.partial + k * pieces * l.channels, some,
                                             static_cast<T*>(nullptr), x);
        }
      }
    });
  });
  parallel(cpu.parallel_for, l.channels, kGrain / (pieces + 1) / steps + 1,
           [&](int64_t first, int64_t last) {
             for (int64_t c = first; c < last; ++c) {
               math::Choice best = {__builtin_inff(), 0};
               for (int64_t k = 1; k <= args.steps; ++k) {
                 float* sums = args.partial + (k - 1) * pieces * l.channels + c;
                 float cost = math::fold_pairs<math::Sum>(0, sums, pieces, l.channels);
                 best = math::better_of(best, math::priced(cost, k));
               }
               math::narrow_range(args, c, best);
             }
           });
}

}  // namespace bitpare
