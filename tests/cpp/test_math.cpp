// Every formula against values worked out by hand, or against the definition it implements.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "backends.h"
#include "math/binarize.h"
#include "math/fake_float.h"
#include "math/fake_quant_lsq.h"
#include "math/fake_quant_weights.h"
#include "math/histogram.h"
#include "math/minmax.h"
#include "math/pack_bits.h"
#include "math/qparams.h"
#include "math/reduce.h"
#include "math/update_ranges.h"

namespace bitpare {
namespace {

math::Code<float> code(float x, const math::Affine<float>& a) {
  return math::quantize<Rounding::nearest>(x, a, -4.0f, 3.0f, 0.0f);
}

TEST(FakeQuant, HandValues) {
  math::Affine<float> a = {0.5f, 2.0f, 1.0f};
  EXPECT_EQ(code(0.26f, a).code, 2.0f);  // 0.52 rounds to 1, plus the zero point
  EXPECT_EQ(code(0.25f, a).code, 1.0f);  // a tie goes to even before the zero point is added
  EXPECT_EQ(code(9.0f, a).code, 3.0f);
  EXPECT_EQ(code(-9.0f, a).code, -4.0f);
  EXPECT_EQ(math::dequantize(code(9.0f, a).code, a), 1.0f);
  EXPECT_TRUE(std::isnan(code(NAN, a).code));
  EXPECT_EQ(code(INFINITY, a).code, 3.0f);
}

TEST(FakeQuant, ScalesThatCannotBe) {
  for (float bad : {0.0f, -1.0f, INFINITY, -INFINITY, NAN}) {
    EXPECT_TRUE(std::isnan(math::usable_scale(bad, false))) << bad;
  }
  EXPECT_EQ(math::usable_scale(0.0f, true), kScaleFloor);
  EXPECT_EQ(math::usable_scale(-3.0f, true), kScaleFloor);
  EXPECT_TRUE(std::isnan(math::usable_scale(INFINITY, true)));
}

TEST(FakeQuant, Estimators) {
  math::Affine<float> a = {1.0f, 1.0f, 0.0f};
  // x = 0.25 has code 0 and error 0.25; a positive gradient grows, a negative one shrinks.
  EXPECT_FLOAT_EQ(math::ewgs_gradient(2.0f, 0.25f, a, code(0.25f, a), 0.5f), 2.0f * 1.125f);
  EXPECT_FLOAT_EQ(math::ewgs_gradient(-2.0f, 0.25f, a, code(0.25f, a), 0.5f), -2.0f * 0.875f);
  EXPECT_EQ(math::ewgs_gradient(2.0f, 9.0f, a, code(9.0f, a), 0.5f), 0.0f);
  float k = 4.0f, peak = k / 2 / std::tanh(k / 2);
  EXPECT_FLOAT_EQ(math::tanh_gradient(1.0f, 0.5f, a, code(0.5f, a), k, peak), peak);
  double mean = 0;
  for (int i = 0; i < 1000; ++i) {
    float x = (static_cast<float>(i) + 0.5f) / 1000;
    mean += math::tanh_gradient(1.0f, x, a, code(x, a), k, peak) / 1000;
  }
  EXPECT_NEAR(mean, 1.0, 1e-5);
}

TEST(FakeQuantLsq, HandValues) {
  math::Affine<float> a = {0.5f, 2.0f, 0.0f};
  auto inside = math::lsq_terms(3.0f, 0.7f, a, -4.0f, 3.0f);
  EXPECT_EQ(inside.dx, 3.0f);
  EXPECT_FLOAT_EQ(inside.scale, 3.0f * (1.0f - 1.4f));
  EXPECT_EQ(inside.zero_point, 0.0f);
  auto above = math::lsq_terms(3.0f, 4.0f, a, -4.0f, 3.0f);
  EXPECT_EQ(above.dx, 0.0f);
  EXPECT_EQ(above.scale, 9.0f);
  EXPECT_EQ(above.zero_point, 3.0f);
  EXPECT_EQ(math::lsq_scale_gradient(2.0f, 1.0f, 0.5f), 1.0f);
  EXPECT_EQ(math::lsq_scale_gradient(2.0f, kScaleFloor, 0.5f), 0.0f);  // would lower it further
  EXPECT_EQ(math::lsq_scale_gradient(-2.0f, 0.0f, 0.5f), -1.0f);
  EXPECT_EQ(math::lsq_zero_point_gradient(3.0f, 2.0f, 0.5f), -3.0f);
}

TEST(Binarize, Levels) {
  EXPECT_EQ(math::level_of<Levels::sign>(0.0f, 0.0f), 1.0f);
  EXPECT_EQ(math::level_of<Levels::sign>(-0.0f, 0.0f), 1.0f);
  EXPECT_EQ(math::level_of<Levels::sign>(-1e-30f, 0.0f), -1.0f);
  EXPECT_EQ(math::level_of<Levels::zero_one>(0.0f, 0.0f), 0.0f);
  EXPECT_EQ(math::level_of<Levels::zero_one>(2.0f, 0.0f), 1.0f);
  EXPECT_EQ(math::level_of<Levels::minus_one_zero>(-2.0f, 0.0f), -1.0f);
  EXPECT_EQ(math::level_of<Levels::ternary>(0.5f, 0.5f), 0.0f);
  EXPECT_EQ(math::level_of<Levels::ternary>(-0.6f, 0.5f), -1.0f);
  EXPECT_TRUE(std::isnan(math::level_of<Levels::sign>(NAN, 0.0f)));
  auto t = math::level_terms<Levels::sign>(2.0f, -3.0f, 1.0f, 0.0f, true);
  EXPECT_EQ(t.dx, 0.0f);
  EXPECT_EQ(t.scale, -2.0f);
  EXPECT_EQ(math::level_terms<Levels::sign>(2.0f, -3.0f, 1.0f, 0.0f, false).dx, 2.0f);
}

float as_format(float x, FloatFormat f) {
  return math::round_to_float<Rounding::nearest>(x, f, 0.0f).code;
}

TEST(FakeFloat, SmallFormats) {
  FloatFormat e4m3 = {3, -6, 448.0f}, e2m1 = {1, 0, 6.0f};
  EXPECT_EQ(as_format(500.0f, e4m3), 448.0f);
  EXPECT_EQ(as_format(17.0f, e4m3), 16.0f);  // a tie, to even
  EXPECT_EQ(as_format(19.0f, e4m3), 20.0f);
  EXPECT_EQ(as_format(0x1p-10f, e4m3), 0.0f);  // half the smallest subnormal, to even
  EXPECT_EQ(as_format(0x1.8p-10f, e4m3), 0x1p-9f);
  EXPECT_EQ(as_format(-INFINITY, e4m3), -448.0f);
  EXPECT_TRUE(std::isnan(as_format(NAN, e4m3)));
  EXPECT_EQ(as_format(2.4f, e2m1), 2.0f);
  EXPECT_EQ(as_format(2.6f, e2m1), 3.0f);
  EXPECT_EQ(as_format(5.0f, e2m1), 4.0f);
  EXPECT_EQ(as_format(0.3f, e2m1), 0.5f);
  EXPECT_EQ(math::round_to_float<Rounding::toward_zero>(-19.9f, e4m3, 0.0f).code, -18.0f);
}

TEST(FakeFloat, IsHalfAndBFloat16) {
  FloatFormat fp16 = {10, -14, 65504.0f}, bf16 = {7, -126, 0x1.fep127f};
  std::mt19937 random(5);
  for (int i = 0; i < 500000; ++i) {
    float x = __builtin_bit_cast(float, static_cast<uint32_t>(random()));
    if (i % 2) x = std::ldexp(static_cast<float>(random()), -static_cast<int>(random() % 60));
    if (!std::isfinite(x)) continue;
    BFloat16 b;
    math::narrow(x, &b);
    if (std::isfinite(math::widen(b))) {
      ASSERT_EQ(as_format(x, bf16), math::widen(b)) << x;
    }
    Half h;
    math::narrow(x, &h);
    float expected = std::clamp(math::widen(h), -65504.0f, 65504.0f);
    ASSERT_EQ(as_format(x, fp16), expected) << x;
  }
}

TEST(Qparams, HandValues) {
  auto s = math::qparams(-1.0f, 2.54f, {-127, 127, true, false});
  EXPECT_FLOAT_EQ(s.scale, 0.02f);
  EXPECT_EQ(s.zero_point, 0);
  auto a = math::qparams(-1.0f, 3.0f, {0, 4, false, false});
  EXPECT_EQ(a.scale, 1.0f);
  EXPECT_EQ(a.zero_point, 1);
  EXPECT_EQ(math::qparams(1.0f, 3.0f, {0, 4, false, false}).zero_point, 0);  // widened to 0
  EXPECT_EQ(math::qparams(0.0f, 0.0f, {0, 255, false, false}).scale, kScaleFloor);
  EXPECT_EQ(math::qparams(0.0f, 3.0f, {0, 4, false, true}).scale, 1.0f);
  EXPECT_EQ(math::qparams(0.0f, 4.0f, {0, 4, false, true}).scale, 1.0f);
  EXPECT_EQ(math::qparams(0.0f, 4.1f, {0, 4, false, true}).scale, 2.0f);
  EXPECT_TRUE(std::isfinite(math::qparams(-3e38f, 3e38f, {0, 255, false, false}).scale));
  EXPECT_TRUE(std::isnan(math::qparams(NAN, NAN, {0, 255, false, false}).scale));
}

TEST(Qparams, ScaleWithinALimit) {
  for (int levels : {1, 3, 7, 15, 127, 255, 65535}) {
    for (float limit : {6.0f, 1.0f, 0.7f}) {
      RangeRule rule = {0, static_cast<float>(levels), false, false, limit};
      float scale = math::qparams(0.0f, 100.0f, rule).scale;
      double top = static_cast<double>(scale) * levels;
      double next = static_cast<double>(std::nextafterf(scale, 1e9f)) * levels;
      EXPECT_LE(top, static_cast<double>(limit));
      EXPECT_GT(next, static_cast<double>(limit));
      EXPECT_EQ(math::qparams(0.0f, limit / 2, rule).scale, limit / 2 / rule.quant_max);
    }
  }
  // A symmetric grid reaches quant_max steps from 0; a power of two stays one.
  EXPECT_EQ(math::qparams(-8.0f, 8.0f, {-4, 3, true, false, 6.0f}).scale, 2.0f);
  EXPECT_EQ(math::qparams(0.0f, 6.0f, {0, 7, false, true, 6.0f}).scale, 1.0f);
}

TEST(UpdateRanges, HandValues) {
  EXPECT_EQ(math::pending_of(INFINITY, -INFINITY), math::Pending::none);
  EXPECT_EQ(math::pending_of(-1.0f, 2.0f), math::Pending::range);
  EXPECT_EQ(math::pending_of(NAN, NAN), math::Pending::broken);
  EXPECT_EQ(math::pending_of(-INFINITY, 1.0f), math::Pending::broken);
  EXPECT_EQ(math::pending_of(1.0f, INFINITY), math::Pending::broken);
  UpdateRule ema = {RangeUpdate::ema, 0.25f, true, false};
  EXPECT_EQ(math::merged_limit(ema, 0, 4.0f, 8.0f, 9), 5.0f);
  EXPECT_EQ(math::merged_limit(ema, 0, 4.0f, 8.0f, 1), 6.0f);
  EXPECT_EQ(math::merged_limit(ema, 0, 4.0f, 8.0f, 0), 8.0f);
  UpdateRule widen = {RangeUpdate::minmax, 0.25f, true, false};
  EXPECT_EQ(math::merged_limit(widen, 0, 4.0f, 8.0f, 1), 4.0f);
  EXPECT_EQ(math::merged_limit(widen, 1, 4.0f, 8.0f, 1), 8.0f);
}

TEST(WeightScale, HandValues) {
  Control control = {-8, 7, 1, 1, 0};
  auto scale = [&](float x, float y) {
    int32_t a = math::magnitude_bits(x), b = math::magnitude_bits(y);
    return math::weight_scale(std::max(a, b), control, false);
  };
  EXPECT_EQ(scale(-14.0f, 3.0f), 2.0f);
  EXPECT_EQ(scale(0.0f, -0.0f), kScaleFloor);
  EXPECT_EQ(scale(-INFINITY, 1.0f), INFINITY);
  EXPECT_TRUE(std::isnan(scale(INFINITY, -NAN)));
}

TEST(MinMax, Bins) {
  float inverse = math::inverse_bin_width(0.0f, 1.0f, 4);
  EXPECT_EQ(math::bin_of(0.25f, 0.0f, inverse, 4), 1);
  EXPECT_EQ(math::bin_of(-9.0f, 0.0f, inverse, 4), 0);
  EXPECT_EQ(math::bin_of(INFINITY, 0.0f, inverse, 4), 3);
  EXPECT_EQ(math::bin_of(NAN, 0.0f, inverse, 4), -1);
  EXPECT_EQ(math::inverse_bin_width(2.0f, 2.0f, 4), 0.0f);
}

TEST(Histogram, BinsAreClosedOnTheOutside) {
  float per_bin = math::bins_per_unit(2.0f, 8);  // bins of 0.5
  EXPECT_EQ(math::symmetric_bin(0.0f, per_bin, 8), 4);
  EXPECT_EQ(math::symmetric_bin(-0.0f, per_bin, 8), 4);
  EXPECT_EQ(math::symmetric_bin(0.5f, per_bin, 8), 4);
  EXPECT_EQ(math::symmetric_bin(0.51f, per_bin, 8), 5);
  EXPECT_EQ(math::symmetric_bin(2.0f, per_bin, 8), 7);
  EXPECT_EQ(math::symmetric_bin(-0.5f, per_bin, 8), 3);
  EXPECT_EQ(math::symmetric_bin(-1e-40f, per_bin, 8), 3);
  EXPECT_EQ(math::symmetric_bin(-2.0f, per_bin, 8), 0);
  EXPECT_EQ(math::symmetric_bin(NAN, per_bin, 8), -1);
  EXPECT_EQ(math::symmetric_bin(-INFINITY, per_bin, 8), -1);
}

TEST(Histogram, LimitsArePowersOfTwo) {
  EXPECT_EQ(math::widened_limit(0.0f, -1.0f), 0.0f);
  EXPECT_EQ(math::widened_limit(0.0f, 0.0f), 0x1p-100f);
  EXPECT_EQ(math::widened_limit(0.0f, 1.0f), 1.0f);
  EXPECT_EQ(math::widened_limit(1.0f, 1.1f), 2.0f);
  EXPECT_EQ(math::widened_limit(8.0f, 1.1f), 8.0f);
  EXPECT_EQ(math::widened_limit(1.0f, 3e38f), 0x1p126f);
  EXPECT_EQ(math::doublings(1.0f, 4.0f), 2);
  EXPECT_EQ(math::doublings(0x1p-100f, 0x1p100f), 31);
  int64_t row[] = {1, 2, 3, 4, 5, 6, 7, 8};
  EXPECT_EQ(math::folded_count(row, 0, false, 4, 1), 5 + 6);
  EXPECT_EQ(math::folded_count(row, 1, true, 4, 1), 1 + 2);
  EXPECT_EQ(math::folded_count(row, 0, true, 4, 31), 1 + 2 + 3 + 4);
  EXPECT_EQ(math::folded_count(row, 2, false, 4, 1), 0);
}

TEST(MseRange, ChoosesTheCheapestThenTheWidest) {
  math::Choice a = {1.0f, 3}, b = {1.0f, 5}, c = {2.0f, 9};
  EXPECT_EQ(math::better_of(a, b).k, 5);
  EXPECT_EQ(math::better_of(b, a).k, 5);
  EXPECT_EQ(math::better_of(c, a).k, 3);
  EXPECT_EQ(math::better_of(math::priced(NAN, 9), a).k, 3);
  auto grid = math::affine_of_range(-2.0f, 1.0f, 2.0f, {-4, 4, true});
  EXPECT_EQ(grid.scale, 0.25f);
  EXPECT_EQ(math::squared_error(0.375f, grid, -4.0f, 4.0f), 0.125f * 0.125f);
}

TEST(Reduce, PairsInOrder) {
  float v[] = {1e8f, 1.0f, -1e8f, 1.0f, 3.0f};
  // (1e8 + 1) + (-1e8 + 1) = 1e8 + -99999999 rounded, then + 3
  float first = 1e8f + 1.0f, second = -1e8f + 1.0f;
  EXPECT_EQ(math::fold_pairs<math::Sum>(0, v, 5, 1), (first + second) + 3.0f);
  EXPECT_EQ(math::fold_pairs<math::Sum>(0, v, 0, 1), 0.0f);
}

TEST(PackBits, HandValues) {
  uint8_t codes[] = {1, 2, 3, 0, 3};
  EXPECT_EQ(math::packed_byte(codes, 4, 2), 1 | 2 << 2 | 3 << 4);
  EXPECT_EQ(math::packed_byte(codes + 4, 1, 2), 3);
  uint8_t packed = 0xF7;
  EXPECT_EQ(static_cast<int8_t>(math::unpacked_code(&packed, 0, 4, true)), 7);
  EXPECT_EQ(static_cast<int8_t>(math::unpacked_code(&packed, 1, 4, true)), -1);
  EXPECT_EQ(math::unpacked_code(&packed, 1, 4, false), 15);
  EXPECT_TRUE(math::fits(static_cast<uint8_t>(-8), 4, true));
  EXPECT_FALSE(math::fits(8, 4, true));
  EXPECT_FALSE(math::fits(16, 4, false));
}

}  // namespace
}  // namespace bitpare
