// Functions of one number: rounding, activations, random numbers, fp16, exp and log, against values
// worked out by hand or the definitions they implement.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "backends.h"
#include "math/activation.h"
#include "math/exp.h"
#include "math/log.h"
#include "math/philox.h"
#include "math/rounding.h"

namespace bitpare {
namespace {

template <Rounding kRounding>
float rounded(float x, float u = 0.0f) {
  return math::round_to_integer<kRounding>(x, u);
}

TEST(Rounding, HandValues) {
  EXPECT_EQ(rounded<Rounding::nearest>(2.5f), 2.0f);
  EXPECT_EQ(rounded<Rounding::nearest>(-3.5f), -4.0f);
  EXPECT_EQ(rounded<Rounding::half_up>(2.5f), 3.0f);
  EXPECT_EQ(rounded<Rounding::half_up>(-2.5f), -2.0f);
  EXPECT_EQ(rounded<Rounding::half_up>(0.49999997f), 0.0f);  // x + 0.5 would round to 1
  EXPECT_EQ(rounded<Rounding::floor>(-0.1f), -1.0f);
  EXPECT_EQ(rounded<Rounding::ceil>(0.1f), 1.0f);
  EXPECT_EQ(rounded<Rounding::toward_zero>(-1.9f), -1.0f);
  EXPECT_EQ(rounded<Rounding::stochastic>(1.25f, 0.2f), 2.0f);
  EXPECT_EQ(rounded<Rounding::stochastic>(1.25f, 0.3f), 1.0f);
  EXPECT_EQ(rounded<Rounding::stochastic>(-1.25f, 0.7f), -1.0f);
  EXPECT_EQ(rounded<Rounding::half_up>(INFINITY), INFINITY);
}

TEST(Activation, HandValues) {
  EXPECT_EQ(math::activate<Activation::relu>(-2.0f), 0.0f);
  EXPECT_EQ(math::activate<Activation::relu6>(7.0f), 6.0f);
  EXPECT_EQ(math::activate<Activation::hardswish>(1.0f), 4.0f / 6.0f);
  EXPECT_EQ(math::activate<Activation::hardswish>(-3.5f), 0.0f);
  EXPECT_EQ(math::activate<Activation::hardsigmoid>(0.0f), 0.5f);
  EXPECT_TRUE(std::isnan(math::activate<Activation::relu6>(NAN)));
  auto less = [](float a, float b) { return a < b; };
  EXPECT_TRUE(math::activation_passes<Activation::relu>(1e-45f, less));
  EXPECT_FALSE(math::activation_passes<Activation::relu>(0.0f, less));
  EXPECT_FALSE(math::activation_passes<Activation::relu6>(6.0f, less));
  EXPECT_EQ(math::activation_slope<Activation::hardswish>(1.5f), 1.0f);
  EXPECT_EQ(math::activation_slope<Activation::hardswish>(3.0f), 1.0f);
  EXPECT_EQ(math::activation_slope<Activation::hardsigmoid>(-3.0f), 0.0f);
}

// Known answers of Random123 1.14 for philox4x32-10.
TEST(Philox, KnownAnswers) {
  auto zero = math::philox<float>(0u, 0u, {0, 0, 0, 0});
  EXPECT_EQ(zero.word[0], 0x6627e8d5u);
  EXPECT_EQ(zero.word[1], 0xe169c58du);
  EXPECT_EQ(zero.word[2], 0xbc57ac4cu);
  EXPECT_EQ(zero.word[3], 0x9b00dbd8u);
  auto pi = math::philox<float>(0x243f6a88u, 0x85a308d3u,
                                {0xa4093822u, 0x299f31d0u, 0x13198a2eu, 0x03707344u});
  EXPECT_EQ(pi.word[0], 0xd16cfe09u);
  EXPECT_EQ(pi.word[1], 0x94fdccebu);
  EXPECT_EQ(pi.word[2], 0x5001e420u);
  EXPECT_EQ(pi.word[3], 0x24126ea1u);
}

TEST(Philox, UniformMean) {
  double sum = 0;
  for (int64_t i = 0; i < 100000; ++i) {
    float u = math::uniform_at(i, {1, 2, 3, 4});
    ASSERT_GE(u, 0.0f);
    ASSERT_LT(u, 1.0f);
    sum += u;
  }
  EXPECT_NEAR(sum / 100000, 0.5, 0.005);  // 5 standard deviations
}

TEST(Half, EveryValueThereAndBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    Half h = {static_cast<uint16_t>(bits)}, back;
    math::narrow(math::widen(h), &back);
    ASSERT_EQ(comparable(back), comparable(h)) << bits;
    BFloat16 b = {static_cast<uint16_t>(bits)}, again;
    math::narrow(math::widen(b), &again);
    ASSERT_EQ(comparable(again), comparable(b)) << bits;
  }
}

TEST(Half, RoundsAsTheCompiler) {
  std::mt19937 random(11);
  for (int i = 0; i < 1000000; ++i) {
    float x = __builtin_bit_cast(float, static_cast<uint32_t>(random()));
    if (i % 2) x = std::ldexp(static_cast<float>(random()), -static_cast<int>(random() % 60));
    Half h;
    math::narrow(x, &h);
    Half expected = __builtin_bit_cast(Half, static_cast<_Float16>(x));
    ASSERT_EQ(comparable(h), comparable(expected)) << x;
  }
}

TEST(Exp, WithinTwoUnits) {
  for (float x = -103.0f; x < 88.7f; x += 0.0137f) {
    double exact = std::exp(static_cast<double>(x));
    float y = math::exponential(x);
    double unit = std::max(std::ldexp(1.0, std::ilogb(exact) - 23), std::ldexp(1.0, -149));
    ASSERT_LE(std::abs(y - exact), 2 * unit) << x;
  }
  EXPECT_EQ(math::exponential(0.0f), 1.0f);
  EXPECT_EQ(math::exponential(-INFINITY), 0.0f);
  EXPECT_EQ(math::exponential(100.0f), INFINITY);
  EXPECT_TRUE(std::isnan(math::exponential(NAN)));
}

TEST(Exp, Tanh) {
  for (float x = -12.0f; x < 12.0f; x += 0.00173f) {
    ASSERT_NEAR(math::hyperbolic_tangent(x), std::tanh(static_cast<double>(x)), 1.2e-7) << x;
  }
  EXPECT_EQ(math::hyperbolic_tangent(-100.0f), -1.0f);
}

// Every 997th float, and all of those about 1, where the result is smallest.
TEST(Log, WithinAUnitInTheLastPlace) {
  double worst = 0;
  auto look_at = [&](uint32_t bits) {
    float x = __builtin_bit_cast(float, bits);
    double exact = std::log(static_cast<double>(x));
    float nearest = static_cast<float>(exact);
    double unit = std::nextafter(std::fabs(nearest), INFINITY) - std::fabs(nearest);
    worst = std::max(worst, std::fabs(math::natural_logarithm(x) - exact) / unit);
  };
  for (uint32_t bits = 1; bits < 0x7f800000u; bits += 997) look_at(bits);
  for (uint32_t bits = 0x3f7f0000u; bits < 0x3f808000u; ++bits) {
    if (bits != 0x3f800000u) look_at(bits);
  }
  EXPECT_LT(worst, 1.0);
  EXPECT_EQ(math::natural_logarithm(1.0f), 0.0f);
  EXPECT_EQ(math::natural_logarithm(0.0f), -INFINITY);
  EXPECT_EQ(math::natural_logarithm(INFINITY), INFINITY);
  EXPECT_TRUE(std::isnan(math::natural_logarithm(-1.0f)));
  EXPECT_TRUE(std::isnan(math::natural_logarithm(NAN)));
}

}  // namespace
}  // namespace bitpare
