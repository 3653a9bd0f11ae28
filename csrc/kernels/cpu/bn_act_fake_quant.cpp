#include "kernels/bn_act_fake_quant.h"

#include "kernels/cpu/channel_sums.h"

namespace bitpare {
namespace {

// The terms of the batch's statistics.
template <class T>
struct ShiftedTerms {
  static constexpr int kTables = 1;
  const T* x;

  [[gnu::always_inline]] void fetch(int64_t at) const { __builtin_prefetch(x + at, 0, 2); }

  template <bool kWhole>
  [[gnu::always_inline]] void add(int64_t at, int64_t count, const OneOfTables<1>& of_channel,
                                  Vec* sums) const {
    Vec d, shift = of_channel.all[0];
    if constexpr (kWhole) {
      d = load(x + at) - shift;
    } else {
      d = load_some(x + at, count) - shift;
      d = lane_numbers() < static_cast<int32_t>(count) ? d : Vec{};
    }
    sums[0] += d;
    sums[1] += d * d;
  }
};

// The bits of `count` elements from `at` on.
BITPARE_INLINE uint64_t bits_from(const uint64_t* words, int64_t at, int64_t count) {
  uint64_t from = static_cast<uint64_t>(at), shift = from % 64;
  uint64_t bits = words[from / 64] >> shift;
  if (shift + static_cast<uint64_t>(count) <= 64) return bits;
  return bits | words[from / 64 + 1] << (64 - shift);
}

// The terms of the gradients of weight and bias, and through the statistics.
template <bool kShaped, class T>
struct GradientTerms {
  static constexpr int kTables = kShaped ? 3 : 1;  // mean, slope, offset
  const T* dy;
  const T* x;
  const uint64_t* inside;

  [[gnu::always_inline]] void fetch(int64_t at) const {
    __builtin_prefetch(dy + at, 0, 2);
    __builtin_prefetch(x + at, 0, 2);
  }

  template <bool kWhole>
  [[gnu::always_inline]] void add(int64_t at, int64_t count, const OneOfTables<kTables>& of_channel,
                                  Vec* sums) const {
    uint64_t bits = bits_from(inside, at, count);
    Vec value = kWhole ? load(x + at) : load_some(x + at, count);
    Vec dv = keep(kWhole ? load(dy + at) : load_some(dy + at, count), bits);
    if constexpr (kShaped) {
      dv = math::shaped_gradient<true>(dv, of_channel.all[1] * value + of_channel.all[2]);
    }
    Vec product = dv * (value - of_channel.all[0]);
    if constexpr (kWhole) {
      sums[0] += dv;
      sums[1] += product;
    } else {
      VecInt there = lane_numbers() < static_cast<int32_t>(count);
      sums[0] += there ? dv : Vec{};
      sums[1] += there ? product : Vec{};
    }
  }
};

// A range as three terms: the least, the most, and NaN once one was seen.
struct Range {
  Vec terms[3];
  Range() {
    for (int t = 0; t < 3; ++t) terms[t] = math::MinMax::identity<Vec>(t);
  }
  [[gnu::always_inline]] void add(Vec v) {
    for (int t = 0; t < 3; ++t) terms[t] = math::MinMax::combine<Vec>(t, terms[t], v);
  }
  // Merges the range into three floats.
  void add_to(float* into) const {
    for (int t = 0; t < 3; ++t) {
      float lanes[kWidth];
      store(lanes, terms[t]);
      for (float lane : lanes) into[t] = math::MinMax::combine<float>(t, into[t], lane);
    }
  }
};

// kShapeSlope, kShapeOffset: slope and offset of v, which the backward pass of a shaped activation
// needs.
enum Table { kSlope, kOffset, kTilt, kMean, kShapeSlope, kShapeOffset };

// Computes one tile of y = activated(slope * x + offset) and its bits. The range is that of v after
// a shaped activation; the caller clamps it as relu and relu6 would.
template <bool kShaped, bool kActive, bool kQuantize, bool kObserve, class T>
void activate_tile(const BnActFakeQuant& args, const Tiles& t, const ChannelTables& tables,
                   const math::ActivationGrid<Vec>& grid, int64_t tile, float* range) {
  int64_t end = t.end(tile);
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  uint64_t* inside = args.inside;
  Range seen;
  auto activate = [&]<bool kWhole>(int64_t i, const auto& at) [[gnu::always_inline]] {
    uint64_t word = 0;
    auto normalized = [&](Vec v, int64_t k) [[gnu::always_inline]] {
      return math::shaped<kShaped>(at.get(kSlope, k) * v + at.get(kOffset, k));
    };
    if constexpr (kWhole) {
#pragma GCC unroll 4
      for (int64_t k = 0; k < kVectors; ++k) {
        Vec v = normalized(load(x + i + k * kWidth), k);
        if constexpr (kObserve) seen.add(v);
        auto a = math::activated<kActive, kQuantize>(v, grid);
        store(y + i + k * kWidth, a.y);
        word |= equal_bits(a.rounded, a.code) << (k * kWidth);
      }
    } else {
      for (int64_t k = 0; i + k * kWidth < end; ++k) {
        int64_t from = i + k * kWidth, count = at_most(end - from, kWidth);
        Vec v = normalized(load_some(x + from, count), k);
        VecInt there = lane_numbers() < static_cast<int32_t>(count);
        if constexpr (kObserve) seen.add(there ? v : math::splat<Vec>(v[0]));
        auto a = math::activated<kActive, kQuantize>(v, grid);
        store_some(y + from, a.y, count);
        word |= equal_bits(a.rounded, a.code) << (k * kWidth);
      }
      word &= ~0ull >> (kBlock - (end - i));
    }
    if (inside) inside[i / kBlock] = word;
  };
  for_each_channel_block<2>(t, tables, t.begin(tile), end, activate);
  if constexpr (kObserve) seen.add_to(range);
}

// Calls f.template operator()<kShaped, kActive, kQuantize, kObserve>().
template <class F>
void with_modes(Activation activation, const Control& control, F f) {
  auto with_activation = [&]<bool kShaped, bool kActive>() {
    if (!control.quantize) return f.template operator()<kShaped, kActive, false, true>();
    if (control.observe) return f.template operator()<kShaped, kActive, true, true>();
    f.template operator()<kShaped, kActive, true, false>();
  };
  if (math::is_shaped(activation)) return with_activation.template operator()<true, false>();
  if (activation == Activation::none) return with_activation.template operator()<false, false>();
  with_activation.template operator()<false, true>();
}

BITPARE_INLINE math::ActivationGrid<Vec> splat_grid(const math::ActivationGrid<float>& g) {
  using math::splat;
  return {splat_affine(g.affine), splat<Vec>(g.low),  splat<Vec>(g.high),
          splat<Vec>(g.least),    splat<Vec>(g.most), g.positive};
}

ChannelTables tables_of(const layout::BnWorkspace& workspace, int64_t channels) {
  return {workspace.tables, workspace.table, workspace.period, channels};
}

// Writes slope, offset and statistics of channels begin .. end - 1. The compiler vectorizes the
// loop, in double.
template <bool kOfBatch>
void normalize(const BnActFakeQuant& args, const Tiles& t, const ChannelTables& tables,
               int64_t begin, int64_t end, const float* sums, const float* squares) {
  int64_t count = t.layout.outer * t.layout.inner, channels = t.layout.channels;
  const float *shift = tables.at(kMean), *weight = args.weight, *bias = args.bias;
  float *slope = tables.at(kSlope), *offset = tables.at(kOffset);
  auto saved = layout::bn_statistics(args.statistics, channels);
  float *running_mean = args.running_mean, *running_var = args.running_var;
  double momentum = args.momentum, eps = args.eps;
#pragma GCC ivdep
  for (int64_t c = begin; c < end; ++c) {
    math::Moments m = {running_mean[c], running_var[c]};
    if constexpr (kOfBatch) {
      m = math::moments_of(shift[c], sums[c - begin], squares[c - begin], count);
      running_mean[c] = math::running(running_mean[c], m.mean, momentum);
      running_var[c] = math::running(running_var[c], math::unbiased(m.variance, count), momentum);
    }
    auto n = math::normalization(m, weight ? weight[c] : 1.0f, bias ? bias[c] : 0.0f, eps);
    slope[c] = saved.slope[c] = n.slope;
    offset[c] = saved.offset[c] = n.offset;
    saved.mean[c] = n.mean;
    saved.inverse_std[c] = n.inverse_std;
  }
}

}  // namespace

// Reads x for the batch's statistics, then again in the opposite order, which finds the last values
// in the cache, and writes y and bits.
template <>
void bn_act_fake_quant(const BnActFakeQuant& args, const OnCpu<BITPARE_ISA>& cpu) {
  Tiles t(args.layout);
  Control control = *args.control;
  if (!args.pending) control.observe = 0;
  bool of_batch = args.training && !control.freeze;
  auto workspace = layout::bn_workspace(args.scratch, args.layout);
  float *partial = workspace.partial, *ranges = workspace.ranges;
  ChannelTables tables = tables_of(workspace, t.layout.channels);
  Quantizer q = args.quantizer;
  q.quant_min = static_cast<float>(control.quant_min);
  q.quant_max = static_cast<float>(control.quant_max);
  *layout::bn_statistics(args.statistics, t.layout.channels).of_batch = of_batch ? 1.0f : 0.0f;
  auto scalar_grid = math::activation_grid(q, args.activation);
  with_type(args.dtype, [&]<class T>(T*) {
    auto x = static_cast<const T*>(args.x);
    if (of_batch) {
      float* shift = tables.at(kMean);
      for (int64_t c = 0; c < t.layout.channels; ++c) shift[c] = math::widen(x[c * t.layout.inner]);
      for (int64_t j = t.layout.channels; j < tables.size; ++j)
        shift[j] = shift[j - t.layout.channels];
      sum_channels(cpu.parallel_for, t, ShiftedTerms<T>{x}, tables.from(kMean), partial,
                   [&](int64_t begin, int64_t end, const float* sums, const float* squares) {
                     normalize<true>(args, t, tables, begin, end, sums, squares);
                   });
      if (args.num_batches_tracked) ++*args.num_batches_tracked;
    } else {
      normalize<false>(args, t, tables, 0, t.layout.channels, nullptr, nullptr);
    }
    tables.repeat(2);
    with_modes(args.activation, control,
               [&]<bool kShaped, bool kActive, bool kQuantize, bool kObserve>() {
                 parallel(cpu.parallel_for, t.count, t.grain, [&](int64_t first, int64_t last) {
                   math::ActivationGrid<Vec> grid = splat_grid(scalar_grid);
                   for (int64_t tile = last - 1; tile >= first; --tile) {
                     float* range = ranges + 3 * tile;
                     for (int k = 0; k < 3; ++k) range[k] = math::MinMax::identity<float>(k);
                     activate_tile<kShaped, kActive, kQuantize, kObserve, T>(args, t, tables, grid,
                                                                             tile, range);
                   }
                 });
               });
  });
  if (!control.observe) return;
  float* all = ranges;
  for (int64_t tile = 1; tile < t.count; ++tile) {
    for (int k = 0; k < 3; ++k)
      all[k] = math::MinMax::combine<float>(k, all[k], ranges[3 * tile + k]);
  }
  for (int k = 0; k < 2; ++k) all[k] = math::clamp(all[k], scalar_grid.least, scalar_grid.most);
  math::fold_pending(args.pending, args.pending + 1, all);
}

namespace {

// Computes one tile of dx.
template <bool kShaped, bool kOfBatch, class T>
void gradient_tile(const BnActFakeQuantGradient& args, const Tiles& t, const ChannelTables& tables,
                   int64_t tile) {
  int64_t end = t.end(tile);
  auto dy = static_cast<const T*>(args.dy), x = static_cast<const T*>(args.x);
  T* dx = static_cast<T*>(args.dx);
  auto pass = [&]<bool kWhole>(int64_t i, const auto& at) [[gnu::always_inline]] {
    uint64_t word = args.inside[i / kBlock];
    auto gradient = [&](Vec g, Vec v, int64_t k) [[gnu::always_inline]] {
      Vec dv = keep(g, word >> (k * kWidth));
      if constexpr (kShaped) {
        dv = math::shaped_gradient<true>(dv, at.get(kShapeSlope, k) * v + at.get(kShapeOffset, k));
      }
      return math::normalized_gradient<kOfBatch>(dv, v, at.get(kMean, k), at.get(kSlope, k),
                                                 at.get(kTilt, k), at.get(kOffset, k));
    };
    if constexpr (kWhole) {
#pragma GCC unroll 4
      for (int64_t k = 0; k < kVectors; ++k) {
        int64_t from = i + k * kWidth;
        store(dx + from, gradient(load(dy + from), load(x + from), k));
      }
    } else {
      for (int64_t k = 0; i + k * kWidth < end; ++k) {
        int64_t from = i + k * kWidth, count = at_most(end - from, kWidth);
        Vec result = gradient(load_some(dy + from, count), load_some(x + from, count), k);
        store_some(dx + from, result, count);
      }
    }
  };
  for_each_channel_block<kShaped ? layout::kBnTables : kMean + 1>(t, tables, t.begin(tile), end,
                                                                  pass);
}

template <bool kShaped, class T>
void write_gradient(const BnActFakeQuantGradient& args, ParallelFor parallel_for) {
  Tiles t(args.layout);
  int64_t channels = t.layout.channels, count = t.layout.outer * t.layout.inner;
  auto saved = layout::bn_statistics(args.statistics, channels);
  bool of_batch = *saved.of_batch != 0.0f;
  ChannelTables tables = tables_of(layout::bn_workspace(args.scratch, args.layout), channels);
  for (int64_t c = 0; c < channels; ++c) tables.at(kMean)[c] = saved.mean[c];
  for (int64_t c = 0; kShaped && c < channels; ++c) {
    tables.at(kShapeSlope)[c] = saved.slope[c];
    tables.at(kShapeOffset)[c] = saved.offset[c];
  }
  tables.from(kMean).repeat(kShaped ? 3 : 1);
  GradientTerms<kShaped, T> terms = {static_cast<const T*>(args.dy), static_cast<const T*>(args.x),
                                     args.inside};
  sum_channels(parallel_for, t, terms, tables.from(kMean), args.scratch,
               [&](int64_t begin, int64_t end, const float* sums, const float* products) {
                 for (int64_t c = begin; c < end; ++c) {
                   auto g = math::normalization_gradient(sums[c - begin], products[c - begin],
                                                         args.weight ? args.weight[c] : 1.0f,
                                                         saved.inverse_std[c], count);
                   tables.at(kSlope)[c] = g.slope;
                   tables.at(kTilt)[c] = g.tilt;
                   tables.at(kOffset)[c] = g.offset;
                   args.weight_gradient[c] = g.weight;
                   args.bias_gradient[c] = g.bias;
                 }
               });
  tables.repeat(kMean);
  parallel(parallel_for, t.count, t.grain, [&](int64_t first, int64_t last) {
    for (int64_t tile = last - 1; tile >= first; --tile) {
      if (of_batch) {
        gradient_tile<kShaped, true, T>(args, t, tables, tile);
      } else {
        gradient_tile<kShaped, false, T>(args, t, tables, tile);
      }
    }
  });
}

}  // namespace

// Reads dy, x and bits for the sums, then again in the opposite order, which finds the last ones in
// the cache, and writes dx.
template <>
void bn_act_fake_quant_gradient(const BnActFakeQuantGradient& args, const OnCpu<BITPARE_ISA>& cpu) {
  with_type(args.dtype, [&]<class T>(T*) {
    if (math::is_shaped(args.activation)) {
      write_gradient<true, T>(args, cpu.parallel_for);
    } else {
      write_gradient<false, T>(args, cpu.parallel_for);
    }
  });
}

}  // namespace bitpare
