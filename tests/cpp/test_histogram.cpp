// Histograms over batches and the ranges chosen from them: every CPU kernel, and the CUDA ones on
// the host, against math/ applied one by one, bit for bit.
#include "by_formula.h"
#include "kernels/histogram_range.h"
#include "kernels/mse_range.h"
#include "kernels/observe_histogram.h"
#include "on_cuda.h"

namespace bitpare {
namespace {

template <class T>
bool small_enough(const Case& c) {
  return c.layout.channels <= (std::is_same_v<T, float> ? 40 : 5);
}

struct Histograms {
  std::vector<int64_t> counts;
  std::vector<float> limit;
  std::vector<int64_t> skipped;
};

Histograms no_histograms(const Case& c, int32_t bins) {
  auto n = static_cast<size_t>(c.layout.channels);
  return {std::vector<int64_t>(n * static_cast<size_t>(bins)), std::vector<float>(n),
          std::vector<int64_t>(n)};
}

using Batches = std::vector<std::vector<float>>;

template <class T, class Where>
Histograms run_observe(const Case& c, const Batches& batches, int32_t bins, int64_t slots,
                       const Where& where) {
  Histograms h = no_histograms(c, bins);
  auto partial = new_partial(c, kLargestTerms);
  std::vector<float> largest(h.limit.size(), NAN);
  std::vector<int64_t> shares(static_cast<size_t>(slots - 1) * h.counts.size(), 77);
  for (const auto& batch : batches) {
    Unaligned<T> x(narrowed<T>(batch));
    observe_histogram(ObserveHistogram{x.data(), kDType<T>, c.layout, h.counts.data(),
                                       h.limit.data(), h.skipped.data(), bins, partial.data(),
                                       largest.data(), shares.data(), slots},
                      where);
  }
  return h;
}

// Counts every batch at the last limit, which folding has to equal.
template <class T>
Histograms counted_at_once(const Case& c, const Batches& batches, int32_t bins) {
  Histograms h = no_histograms(c, bins);
  auto each = [&](auto f) {
    for (const auto& batch : batches) {
      for (int64_t i = 0; i < c.n(); ++i) {
        f(static_cast<size_t>(channel_of(c, i)), widened_once<T>(batch[static_cast<size_t>(i)]));
      }
    }
  };
  each([&](size_t channel, float x) {
    if (std::isfinite(x)) h.limit[channel] = math::widened_limit(h.limit[channel], std::fabs(x));
  });
  each([&](size_t channel, float x) {
    int32_t bin = math::symmetric_bin(x, math::bins_per_unit(h.limit[channel], bins), bins);
    if (bin >= 0) ++h.counts[channel * static_cast<size_t>(bins) + static_cast<size_t>(bin)];
  });
  for (const auto& batch : batches) {
    std::vector<bool> odd(h.skipped.size());
    for (int64_t i = 0; i < c.n(); ++i) {
      float x = widened_once<T>(batch[static_cast<size_t>(i)]);
      if (!std::isfinite(x)) odd[static_cast<size_t>(channel_of(c, i))] = true;
    }
    for (size_t i = 0; i < odd.size(); ++i) h.skipped[i] += odd[i];
  }
  return h;
}

void expect_same(const Histograms& got, const Histograms& expected, const std::string& what) {
  expect_same_bits(got.limit, expected.limit, what + " limit");
  expect_same_bits(got.counts, expected.counts, what + " counts");
  expect_same_bits(got.skipped, expected.skipped, what + " skipped");
}

TEST(ObserveHistogram, FoldingIsCountingAtOnce) {
  for_each_type([]<class T>(T) {
    for (const Case& c : layouts()) {
      int32_t bins = c.n() == 5000 ? 1024 : 64;
      std::vector<float> zeros(static_cast<size_t>(c.n()));
      for (const Batches& batches :
           {Batches{finite_values(c.n(), 1, 0.01f), finite_values(c.n(), 2), zeros,
                    finite_values(c.n(), 3, 100.0f)},
            Batches{zeros, test_values(c.n(), 4, 20.0f), finite_values(c.n(), 5)}}) {
        auto expected = counted_at_once<T>(c, batches, bins);
        everywhere(small_enough<T>(c), [&](const auto& where, const std::string& name) {
          expect_same(run_observe<T>(c, batches, bins, 1, where), expected, name + c.name());
        });
        on_every_cpu([&](const auto& cpu, const std::string& name) {
          expect_same(run_observe<T>(c, batches, bins, 3, cpu), expected,
                      name + " 3 slots " + c.name());
        });
      }
    }
  });
}

// More bins than shared memory holds, and more than a block has threads.
TEST(ObserveHistogram, ManyBins) {
  Case c = {{1, 2, 3000}};
  Batches batches = {finite_values(c.n(), 1, 0.3f), finite_values(c.n(), 2, 0.9f)};
  for (int32_t bins : {2048, 16384}) {
    auto expected = counted_at_once<float>(c, batches, bins);
    everywhere(true, [&](const auto& where, const std::string& name) {
      expect_same(run_observe<float>(c, batches, bins, 1, where), expected, name);
    });
  }
}

// Rows of counts: bell, rectified, one-sided below, few values, one bin, outliers, nothing.
struct Rows {
  std::vector<int64_t> counts;
  std::vector<float> limit;
  int64_t n() const { return static_cast<int64_t>(limit.size()); }
};

Rows rows_of_counts(int32_t bins) {
  Rows rows;
  std::mt19937 random(static_cast<unsigned>(bins));
  std::normal_distribution<float> normal(0.0f, 0.15f);
  for (int kind = 0; kind < 8; ++kind) {
    std::vector<int64_t> row(static_cast<size_t>(bins));
    int64_t values = kind == 3 ? 5 : kind == 7 ? 0 : 30000;
    for (int64_t i = 0; i < values; ++i) {
      float x = normal(random);
      if (kind == 1) x = std::max(x, 0.0f);
      if (kind == 2) x = -std::fabs(x) - 0.01f;
      if (kind == 4) x = 0.3f;
      if (kind == 5 && i < 3) x = i == 1 ? -0.9f : 1.0f;
      if (kind == 6) x = x * x * x * 20;
      int32_t bin = math::symmetric_bin(x, math::bins_per_unit(1.0f, bins), bins);
      ++row[static_cast<size_t>(bin)];
    }
    rows.counts.insert(rows.counts.end(), row.begin(), row.end());
    rows.limit.push_back(kind == 7 ? 0.0f : std::ldexp(1.0f, 5 * kind - 20));
  }
  return rows;
}

struct Ranges {
  std::vector<float> low, high;
};

template <class Where>
Ranges run_histogram_range(const Rows& rows, HistogramRange args, const Where& where) {
  auto n = static_cast<size_t>(rows.n()), bins = static_cast<size_t>(args.bins);
  Ranges result = {std::vector<float>(n), std::vector<float>(n)};
  std::vector<int64_t> below(n * (bins + 1), -7);
  std::vector<float> share(n * bins, NAN), cost(n * bins, NAN);
  std::vector<int32_t> filled(below.size(), -7);
  std::vector<double> weight(below.size(), NAN);
  args.counts = rows.counts.data();
  args.limit = rows.limit.data();
  args.n = rows.n();
  args.low = result.low.data();
  args.high = result.high.data();
  args.below = below.data();
  args.share = args.method == RangeMethod::mse ? share.data() : nullptr;
  args.filled = args.method == RangeMethod::entropy ? filled.data() : nullptr;
  args.weight = args.method == RangeMethod::entropy ? weight.data() : nullptr;
  args.cost = args.method == RangeMethod::percentile ? nullptr : cost.data();
  args.candidates = std::min(args.bins / 2, math::kMostCandidates);
  histogram_range(args, where);
  return result;
}

// The running sums of one row, and the choice by the formulas of math/ alone.
struct Chosen {
  std::vector<int64_t> below = {0};
  std::vector<int32_t> filled = {0};
  std::vector<double> weight = {0};
  std::vector<float> share;

  Chosen(const int64_t* counts, int32_t bins) {
    for (int32_t b = 0; b < bins; ++b) {
      below.push_back(below.back() + counts[b]);
      filled.push_back(filled.back() + (counts[b] > 0));
      weight.push_back(weight.back() + math::weight_of(counts[b]));
    }
    for (int32_t b = 0; b < bins; ++b) {
      share.push_back(static_cast<float>(counts[b]) / static_cast<float>(below.back()));
    }
  }

  float cost(HistogramRange args, const math::HistogramRow& r, const math::Span& span,
             bool widest) const {
    std::vector<float> lanes(kSumLanes);
    if (args.method == RangeMethod::mse) {
      auto a = math::affine_of_candidate(args, 0, span);
      for (size_t b = 0; b < share.size(); ++b) {
        float centre = math::bin_centre(static_cast<float>(b), args.bins);
        lanes[b % kSumLanes] +=
            share[b] * math::squared_error(centre, a, args.rule.quant_min, args.rule.quant_max);
      }
      return math::fold_lanes<math::Sum>(0, lanes.data());
    }
    auto d = math::divergence_of_candidate(args, r, span);
    if (!widest && !math::fills_levels(args, d)) return INFINITY;
    for (int32_t l = 0; l < d.levels; ++l) {
      lanes[static_cast<size_t>(l % kSumLanes)] += math::divergence_of_level(r, d, l);
    }
    return math::divergence(d, math::fold_lanes<math::Sum>(0, lanes.data()));
  }

  math::Limits range(HistogramRange args, const float* limit) {
    args.limit = limit;
    args.below = below.data();
    args.filled = filled.data();
    args.weight = weight.data();
    math::HistogramRow r = math::row_of(args, 0);
    math::Span all = math::outermost(r, args.rule.symmetric);
    math::Choice best = {INFINITY, 0};
    int32_t n = math::candidates_of(all);
    for (int32_t k = 1; args.method != RangeMethod::percentile && k <= n; ++k) {
      best = math::better_of(best, math::priced(cost(args, r, math::shrunk(all, k, n), k == n), k));
    }
    return math::chosen_range(args, 0, best);
  }
};

TEST(HistogramRange, IsTheFormula) {
  for (int32_t bins : {64, 256, 4096}) {
    Rows rows = rows_of_counts(bins);
    for (auto method : {RangeMethod::percentile, RangeMethod::mse, RangeMethod::entropy}) {
      for (RangeRule rule : {RangeRule{-128, 127, true}, RangeRule{0, 255, false},
                             RangeRule{0, 15, true}, RangeRule{-2, 1, false}}) {
        if (bins > 256 && rule.quant_max != 127) continue;
        HistogramRange args = {};
        args.bins = bins;
        args.method = method;
        args.rule = rule;
        args.left_out = 0.001;
        Ranges expected;
        for (int64_t row = 0; row < rows.n(); ++row) {
          Chosen chosen(rows.counts.data() + row * bins, bins);
          math::Limits range = chosen.range(args, rows.limit.data() + row);
          expected.low.push_back(range.low);
          expected.high.push_back(range.high);
        }
        everywhere(
            bins == 64 || rule.quant_min == -2, [&](const auto& where, const std::string& name) {
              auto got = run_histogram_range(rows, args, where);
              std::string what = name + " method " + std::to_string(static_cast<int>(method));
              expect_same_bits(got.low, expected.low, what + " low");
              expect_same_bits(got.high, expected.high, what + " high");
            });
      }
    }
  }
}

template <class T, class Where>
Ranges run_mse_range(const Case& c, const std::vector<float>& x, const Ranges& range,
                     const RangeRule& rule, int64_t steps, const Where& where) {
  Ranges result = range;
  Unaligned<T> in(narrowed<T>(x));
  auto channels = static_cast<size_t>(c.layout.channels);
  std::vector<float> grid(static_cast<size_t>(3 * steps + 1) * channels, NAN);
  auto partial = new_partial(c, static_cast<int>(steps));
  mse_range(MseRange{in.data(), kDType<T>, c.layout, result.low.data(), result.high.data(), rule,
                     steps, grid.data(), partial.data()},
            where);
  return result;
}

TEST(MseRange, IsTheFormulaInTheFixedOrder) {
  constexpr int64_t kSteps = 9;
  for_each_type([]<class T>(T) {
    for (const Case& c : layouts()) {
      for (RangeRule rule : {RangeRule{-8, 7, true}, RangeRule{0, 3, false}}) {
        auto x = finite_values(c.n(), 21);
        auto channels = static_cast<size_t>(c.layout.channels);
        Ranges own = {std::vector<float>(channels, INFINITY),
                      std::vector<float>(channels, -INFINITY)};
        for (int64_t i = 0; i < c.n(); ++i) {
          auto channel = static_cast<size_t>(channel_of(c, i));
          float v = widened_once<T>(x[static_cast<size_t>(i)]);
          own.low[channel] = std::min(own.low[channel], v);
          own.high[channel] = std::max(own.high[channel], v);
        }
        std::vector<math::Choice> best(channels, {INFINITY, 0});
        for (int64_t k = 1; k <= kSteps; ++k) {
          float fraction = math::fraction_of(k, kSteps);
          auto sums = reduced<math::Sum>(c, 0, [&](int64_t i) {
            auto channel = static_cast<size_t>(channel_of(c, i));
            float low = own.low[channel], high = own.high[channel];
            float unit = math::unit_of(low, high);
            auto a = math::affine_of_range(low * fraction, high * fraction, unit, rule);
            float v = widened_once<T>(x[static_cast<size_t>(i)]) * (1.0f / unit);
            return math::squared_error(v, a, rule.quant_min, rule.quant_max);
          });
          for (size_t i = 0; i < channels; ++i) {
            best[i] = math::better_of(best[i], math::priced(sums[i], k));
          }
        }
        Ranges expected = own;
        for (size_t i = 0; i < channels; ++i) {
          expected.low[i] *= math::fraction_of(best[i].k, kSteps);
          expected.high[i] *= math::fraction_of(best[i].k, kSteps);
        }
        everywhere(small_enough<T>(c), [&](const auto& where, const std::string& name) {
          auto got = run_mse_range<T>(c, x, own, rule, kSteps, where);
          expect_same_bits(got.low, expected.low, name + " low " + c.name());
          expect_same_bits(got.high, expected.high, name + " high " + c.name());
        });
      }
    }
  });
}

}  // namespace
}  // namespace bitpare
