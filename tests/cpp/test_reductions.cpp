// Reductions, on every instruction set and on CUDA, for each element type and layout, against the
// formulas in math/ and the order that math/reduce.h fixes, bit for bit.
#include "by_formula.h"
#include "kernels/dispatch.h"
#include "math/fake_quant_lsq.h"
#include "on_cuda.h"

namespace bitpare {
namespace {

TEST(FakeQuantLsq, IsTheFormulaInTheFixedOrder) {
  for_each_type([]<class T>(T) {
    auto cases = all_cases();
    // More pieces than a CUDA block has threads, so that its runs are longer than one.
    cases.insert(cases.end(), {{{1, 1, 400 * kSumChunk + 5}}, {{17000, 2, 1}}, {{700, 2, 3}}});
    for (const Case& c : cases) {
      if (c.rounding != Rounding::nearest) continue;
      auto x = finite_values(c.n(), 8), dy = finite_values(c.n(), 9);
      Numbers numbers(c);
      const Quantizer& q = numbers.quantizer;
      auto terms = [&](int64_t i) {
        auto k = static_cast<size_t>(i);
        return math::lsq_terms(widened_once<T>(dy[k]), widened_once<T>(x[k]),
                               math::affine_of_channel(q, channel_of(c, i)), q.quant_min,
                               q.quant_max);
      };
      auto expected = elementwise<T>(
          c, x, q, [&](int64_t i, float, const auto&, bool*) { return terms(i).dx; });
      auto ds = reduced<math::Sum>(c, 0, [&](int64_t i) { return terms(i).scale; });
      auto dz = reduced<math::Sum>(c, 1, [&](int64_t i) { return terms(i).zero_point; });
      for (size_t i = 0; i < ds.size(); ++i) {
        ds[i] = math::lsq_scale_gradient(ds[i], numbers.scale[i], 0.25f);
        dz[i] = math::lsq_zero_point_gradient(dz[i], numbers.scale[i], 0.25f);
      }
      everywhere([&](const auto& where, const std::string& name) {
        auto got = run_lsq<T>(c, dy, x, where);
        expect_same_bits(got.dx, expected.y, name + " dx " + c.name());
        expect_same_bits(got.first, ds, name + " ds " + c.name());
        expect_same_bits(got.second, dz, name + " dz " + c.name());
      });
    }
  });
}

TEST(Binarize, GradientIsTheFormulaInTheFixedOrder) {
  for_each_type([]<class T>(T) {
    for (Case c : layouts()) {
      for (Levels levels : kLevels) {
        c.floored = true;
        auto x = finite_values(c.n(), 10), dy = finite_values(c.n(), 11);
        Numbers numbers(c);
        Quantizer q = levels_quantizer(numbers, levels);
        auto terms = [&](int64_t i) {
          auto k = static_cast<size_t>(i);
          auto a = math::affine_of_channel(q, channel_of(c, i));
          math::LevelTerms<float> all = {};
          with_levels(levels, [&]<Levels kLevel>() {
            all = math::level_terms<kLevel>(widened_once<T>(dy[k]), widened_once<T>(x[k]), a.scale,
                                            a.threshold, true);
          });
          return all;
        };
        auto expected = elementwise<T>(
            c, x, q, [&](int64_t i, float, const auto&, bool*) { return terms(i).dx; });
        auto ds = reduced<math::Sum>(c, 0, [&](int64_t i) { return terms(i).scale; });
        everywhere([&](const auto& where, const std::string& name) {
          auto got = run_binarize_gradient<T>(c, dy, x, levels, where);
          expect_same_bits(got.dx, expected.y, name + " dx " + c.name());
          expect_same_bits(got.first, ds, name + " ds " + c.name());
        });
      }
    }
  });
}

TEST(MeanMagnitude, IsTheFormulaInTheFixedOrder) {
  for_each_type([]<class T>(T) {
    for (const Case& c : layouts()) {
      for (bool thresholds : {false, true}) {
        auto x = finite_values(c.n(), 12);
        Numbers numbers(c);
        auto terms = [&](int64_t i) {
          auto channel = static_cast<size_t>(channel_of(c, i));
          float threshold = thresholds ? numbers.scale[channel] : -1.0f;
          return math::magnitude_terms(widened_once<T>(x[static_cast<size_t>(i)]), threshold);
        };
        auto sum = reduced<math::Sum>(c, 0, [&](int64_t i) { return terms(i).sum; });
        auto count = reduced<math::Sum>(c, 1, [&](int64_t i) { return terms(i).count; });
        for (size_t i = 0; i < sum.size(); ++i) sum[i] = math::mean_of(sum[i], count[i]);
        everywhere([&](const auto& where, const std::string& name) {
          auto got = run_mean_magnitude<T>(c, x, thresholds, where);
          expect_same_bits(got.first, sum, name + " " + c.name());
        });
      }
    }
  });
}

TEST(MinMax, WithAndWithoutHistogram) {
  for_each_type([]<class T>(T) {
    for (const Case& c : layouts()) {
      for (bool odd : {false, true}) {
        auto x = odd ? test_values(c.n(), 13) : finite_values(c.n(), 13);
        auto channels = static_cast<size_t>(c.layout.channels);
        std::vector<float> low(channels, INFINITY), high(channels, -INFINITY);
        std::vector<int64_t> counts(channels * 10);
        for (int64_t i = 0; i < c.n(); ++i) {
          float v = widened_once<T>(x[static_cast<size_t>(i)]);
          auto channel = static_cast<size_t>(channel_of(c, i));
          low[channel] = v != v || low[channel] != low[channel] ? NAN : std::min(low[channel], v);
          high[channel] =
              v != v || high[channel] != high[channel] ? NAN : std::max(high[channel], v);
          int bin = math::bin_of(v, -2.0f, math::inverse_bin_width(-2.0f, 2.5f, 10), 10);
          if (bin >= 0) ++counts[channel * 10 + static_cast<size_t>(bin)];
        }
        for (auto* limits : {&low, &high}) {
          for (float& limit : *limits) limit += 0.0f;  // a zero is reported as +0
        }
        auto check = [&](const auto& where, const std::string& name) {
          auto plain = run_minmax<T>(c, x, 0, 0, where);
          expect_same_bits(plain.first, low, name + " min " + c.name());
          expect_same_bits(plain.second, high, name + " max " + c.name());
          auto binned = run_minmax<T>(c, x, 10, 3, where);
          expect_same_bits(binned.first, low, name + " min " + c.name());
          expect_same_bits(binned.counts, counts, name + " counts " + c.name());
        };
        everywhere(odd, check);
      }
    }
  });
}

}  // namespace
}  // namespace bitpare
