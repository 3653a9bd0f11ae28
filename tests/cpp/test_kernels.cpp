// Elementwise kernels, on every instruction set and on CUDA, for each element type and layout,
// against math/ applied element by element, bit for bit.
#include "by_formula.h"
#include "kernels/dispatch.h"
#include "math/philox.h"
#include "on_cuda.h"

namespace bitpare {
namespace {

math::Code<float> code_of(const Case& c, const Quantizer& q, const int64_t* rng, int64_t i, float x,
                          const math::Affine<float>& a) {
  float u = math::uniform_at(i, math::philox_key(rng));
  switch (c.rounding) {
    case Rounding::nearest:
      return math::quantize<Rounding::nearest>(x, a, q.quant_min, q.quant_max, u);
    case Rounding::half_up:
      return math::quantize<Rounding::half_up>(x, a, q.quant_min, q.quant_max, u);
    case Rounding::floor:
      return math::quantize<Rounding::floor>(x, a, q.quant_min, q.quant_max, u);
    case Rounding::ceil:
      return math::quantize<Rounding::ceil>(x, a, q.quant_min, q.quant_max, u);
    case Rounding::toward_zero:
      return math::quantize<Rounding::toward_zero>(x, a, q.quant_min, q.quant_max, u);
    default:
      return math::quantize<Rounding::stochastic>(x, a, q.quant_min, q.quant_max, u);
  }
}

TEST(FakeQuant, IsTheFormula) {
  for_each_type([]<class T>(T) {
    for (const Case& c : all_cases()) {
      auto x = test_values(c.n(), 1);
      Numbers numbers(c);
      const Quantizer& q = numbers.quantizer;
      auto expected = elementwise<T>(c, x, q, [&](int64_t i, float v, const auto& a, bool* inside) {
        auto code = code_of(c, q, numbers.rng, i, v, a);
        *inside = code.rounded == code.code;
        return math::dequantize(code.code, a);
      });
      everywhere([&](const auto& where, const std::string& name) {
        expect_same(run_fake_quant<T>(c, x, where), expected, name + " " + c.name());
      });
    }
  });
}

TEST(FakeQuant, EstimatorsAreTheFormula) {
  for_each_type([]<class T>(T) {
    for (Estimator estimator : {Estimator::ewgs, Estimator::tanh}) {
      for (const Case& c : all_cases()) {
        auto x = test_values(c.n(), 2), dy = finite_values(c.n(), 3);
        Numbers numbers(c);
        const Quantizer& q = numbers.quantizer;
        auto expected = elementwise<T>(c, x, q, [&](int64_t i, float v, const auto& a, bool*) {
          auto code = code_of(c, q, numbers.rng, i, v, a);
          float g = widened_once<T>(dy[static_cast<size_t>(i)]);
          return estimator == Estimator::tanh ? math::tanh_gradient(g, v, a, code, 2.0f, 1.3f)
                                              : math::ewgs_gradient(g, v, a, code, 2.0f);
        });
        expected.bits.clear();
        everywhere([&](const auto& where, const std::string& name) {
          expect_same(run_estimator<T>(c, dy, x, estimator, where), expected,
                      name + " " + c.name());
        });
      }
    }
  });
}

template <Activation kActivation>
float act_formula(const ActCase& a, const Quantizer& q, const math::Affine<float>& affine, float v,
                  bool* inside, std::vector<float>* seen) {
  float w = math::activate<kActivation>(v);
  seen->push_back(w);
  auto code = math::quantize<Rounding::nearest>(w, affine, q.quant_min, q.quant_max, 0.0f);
  *inside = !a.quantize || code.rounded == code.code;
  if (kActivation == Activation::relu) *inside &= v > 0;
  if (kActivation == Activation::relu6) *inside &= v > 0 && v < 6;
  return a.quantize ? math::dequantize(code.code, affine) : w;
}

// Returns the range of the values seen, merged into (1, 2).
std::vector<float> folded(const std::vector<float>& seen) {
  std::vector<float> pending = {1.0f, 2.0f};
  for (float w : seen) {
    if (w != w || pending[0] != pending[0]) {
      pending = {NAN, NAN};
    } else {
      pending = {std::min(pending[0], w + 0.0f), std::max(pending[1], w + 0.0f)};
    }
  }
  return pending;
}

TEST(ActFakeQuant, IsTheFormula) {
  for_each_type([]<class T>(T) {
    for (const ActCase& a : act_cases()) {
      for (const Case& c : flat_cases()) {
        bool odd = c.n() % 2 == 0;  // with NaN and infinities, or without
        auto x = odd ? test_values(c.n(), 31) : finite_values(c.n(), 31);
        auto other = finite_values(c.n(), 32);
        std::vector<float> seen;
        Numbers numbers(c);
        const Quantizer& q = numbers.quantizer;
        auto expected = elementwise<T>(c, x, q, [&](int64_t i, float v, auto affine, bool* inside) {
          if (a.has_other) v = v + widened_once<T>(other[static_cast<size_t>(i)]);
          float y = 0;
          with_activation(a.activation, [&]<Activation kActivation>() {
            y = act_formula<kActivation>(a, q, affine, v, inside, &seen);
          });
          return y;
        });
        auto pending = folded(a.observe ? seen : std::vector<float>());
        auto check = [&](const auto& where, const std::string& name) {
          auto got = run_act_fake_quant<T>(c, a, x, other, where);
          expect_same(got.elements, expected, name + " " + c.name() + a.name());
          expect_same_bits(got.pending, pending, name + " pending " + c.name() + a.name());
        };
        everywhere(c.n() <= 5000 || (a.activation == Activation::relu && !a.has_other), check);
      }
    }
  });
}

TEST(ActFakeQuant, GradientIsTheFormula) {
  for_each_type([]<class T>(T) {
    for (const Case& c : flat_cases()) {
      auto x = test_values(c.n(), 33), dy = finite_values(c.n(), 34);
      auto bits = random_words(c.n());
      for (bool swish : {false, true}) {
        auto expected = elementwise<T>(c, x, {}, [&](int64_t i, float v, const auto&, bool*) {
          auto k = static_cast<size_t>(i);
          float slope = swish ? math::activation_slope<Activation::hardswish>(v)
                              : math::activation_slope<Activation::hardsigmoid>(v);
          return bits[k / 64] >> (k % 64) & 1 ? widened_once<T>(dy[k]) * slope : 0.0f;
        });
        expected.bits.clear();
        auto activation = swish ? Activation::hardswish : Activation::hardsigmoid;
        everywhere([&](const auto& where, const std::string& name) {
          auto got = run_act_gradient<T>(dy, x, bits, activation, where);
          expect_same(got, expected, name + " " + c.name());
        });
      }
    }
  });
}

TEST(StraightThrough, KeepsWhatTheBitsSay) {
  for_each_type([]<class T>(T) {
    for (int64_t n = 0; n <= 200; n += n < 131 ? 1 : 13) {
      auto dy = test_values(n, 4);
      std::mt19937_64 random(static_cast<unsigned>(n));
      auto bits = new_words(n);
      for (auto& word : bits) word = random();
      auto expected = narrowed<T>(dy);
      for (size_t i = 0; i < expected.size(); ++i) {
        if (!(bits[i / 64] >> (i % 64) & 1)) expected[i] = T{};
      }
      everywhere([&](const auto& where, const std::string& name) {
        auto got = run_straight_through<T>(dy, bits, where);
        EXPECT_TRUE(got.intact);
        expect_same_bits(got.y, expected, name + " n " + std::to_string(n));
      });
    }
  });
}

TEST(FakeFloat, IsTheFormula) {
  FloatFormat formats[] = {{3, -6, 448.0f}, {1, 0, 6.0f}, {7, -126, 0x1.fep127f}};
  for_each_type([&]<class T>(T) {
    for (const FloatFormat& format : formats) {
      for (const Case& c : all_cases()) {
        auto x = test_values(c.n(), 5, 100.0f);
        Numbers numbers(c);
        numbers.quantizer.zero_point = nullptr;
        auto expected = elementwise<T>(
            c, x, numbers.quantizer, [&](int64_t i, float v, const auto& a, bool* inside) {
              math::Code<float> r = {};
              float u = math::uniform_at(i, math::philox_key(numbers.rng));
              with_rounding(c.rounding, [&]<Rounding kRounding>() {
                r = math::round_to_float<kRounding>(v * a.inverse, format, u);
              });
              *inside = r.rounded == r.code;
              return r.code * a.scale;
            });
        everywhere([&](const auto& where, const std::string& name) {
          expect_same(run_fake_float<T>(c, x, format, where), expected, name + " " + c.name());
        });
      }
    }
  });
}

TEST(Binarize, IsTheFormula) {
  for_each_type([]<class T>(T) {
    for (Case c : layouts()) {
      for (Levels levels : kLevels) {
        c.floored = true;
        auto x = test_values(c.n(), 6);
        Numbers numbers(c);
        Quantizer q = levels_quantizer(numbers, levels);
        auto expected = elementwise<T>(c, x, q, [&](int64_t, float v, const auto& a, bool*) {
          float level = 0;
          with_levels(levels,
                      [&]<Levels kLevel>() { level = math::level_of<kLevel>(v, a.threshold); });
          return level * a.scale;
        });
        expected.bits.clear();
        everywhere([&](const auto& where, const std::string& name) {
          expect_same(run_binarize<T>(c, x, levels, where), expected, name + " " + c.name());
        });
      }
    }
  });
}

template <class T, class Q>
void check_quantize(const Case& c, IntType type) {
  auto x = test_values(c.n(), 7);
  Numbers numbers(c);
  const Quantizer& q = numbers.quantizer;
  std::vector<Q> codes(x.size());
  bool nan = false;
  for (int64_t i = 0; i < c.n(); ++i) {
    auto k = static_cast<size_t>(i);
    auto a = math::affine_of_channel(q, channel_of(c, i));
    float v = widened_once<T>(x[k]);
    float code = math::quantize<Rounding::nearest>(v, a, q.quant_min, q.quant_max, 0.0f).code;
    nan |= code != code;
    codes[k] = static_cast<Q>(code == code ? code : a.zero_point);
  }
  auto back = elementwise<T>(c, x, q, [&](int64_t i, float, const auto& a, bool*) {
    return math::dequantize(static_cast<float>(codes[static_cast<size_t>(i)]), a);
  });
  back.bits.clear();
  everywhere([&](const auto& where, const std::string& name) {
    auto got = run_quantize<T, Q>(c, x, type, where);
    EXPECT_TRUE(got.intact);
    expect_same_bits(got.y, codes, name + " codes " + c.name());
    bool on_cuda = std::is_same_v<decltype(where), const OnCuda&>;  // which looks for no NaN
    EXPECT_EQ(got.bits[0], nan && !on_cuda ? 1u : 0u);
    expect_same(run_dequantize<T, Q>(c, codes, type, where), back, name + " back " + c.name());
  });
}

TEST(Quantize, IsTheFormula) {
  for_each_type([]<class T>(T) {
    for (Case c : layouts()) {
      check_quantize<T, int8_t>(c, IntType::int8);
      c.quant_min = 0, c.quant_max = 255, c.zero_point = ZeroPoint::none;
      check_quantize<T, uint8_t>(c, IntType::uint8);
      c.quant_min = -32768, c.quant_max = 32767;
      check_quantize<T, int16_t>(c, IntType::int16);
      c.quant_min = 0, c.quant_max = 65535;
      check_quantize<T, int32_t>(c, IntType::int32);
    }
  });
}

TEST(PackBits, ThereAndBack) {
  for (int bits : {1, 2, 4}) {
    for (bool is_signed : {false, true}) {
      for (int64_t columns = 1; columns < 70; ++columns) {
        std::mt19937 random(static_cast<unsigned>(columns));
        std::vector<uint8_t> codes(static_cast<size_t>(3 * columns));
        int low = is_signed ? -(1 << (bits - 1)) : 0;
        for (auto& code : codes) {
          code = static_cast<uint8_t>(low + static_cast<int>(random() % (1u << bits)));
        }
        int64_t row_bytes = (columns * bits + 7) / 8;
        everywhere([&](const auto& where, const std::string& name) {
          std::vector<uint8_t> packed(static_cast<size_t>(3 * row_bytes), 0xA5), back(codes.size());
          int32_t odd = 0;
          pack_bits(PackBits{codes.data(), packed.data(), 3, columns, bits, is_signed, &odd},
                    where);
          EXPECT_EQ(odd, 0);
          unpack_bits(UnpackBits{packed.data(), back.data(), 3, columns, bits, is_signed}, where);
          EXPECT_EQ(back, codes) << name << " bits " << bits << " columns " << columns;
        });
      }
    }
  }
}

TEST(PackBits, TellsWhatDoesNotFit) {
  uint8_t code = 4, packed = 0;
  int32_t odd = 0;
  pack_bits(PackBits{&code, &packed, 1, 1, 2, false, &odd}, OnCpu<Baseline>{serial});
  EXPECT_EQ(odd, 1);
}

TEST(Qparams, IsTheFormula) {
  auto low = finite_values(100, 14), high = finite_values(100, 15);
  for (size_t i = 0; i < low.size(); ++i) {
    if (low[i] > high[i]) std::swap(low[i], high[i]);
  }
  RangeRule rules[] = {{-127, 127, true, false}, {0, 255, false, false}, {-8, 7, false, true}};
  for (const RangeRule& rule : rules) {
    everywhere([&](const auto& where, const std::string& name) {
      std::vector<float> scale(100);
      std::vector<int32_t> zero_point(100);
      qparams(QparamsFromRange{low.data(), high.data(), scale.data(), zero_point.data(), 100, rule},
              where);
      for (size_t i = 0; i < 100; ++i) {
        auto expected = math::qparams(low[i], high[i], rule);
        EXPECT_EQ(scale[i], expected.scale) << name;
        EXPECT_EQ(zero_point[i], expected.zero_point) << name;
      }
    });
  }
}

TEST(Capability, NamesAndOrder) {
  EXPECT_STREQ(name_of(CpuCapability::baseline), "default");
  EXPECT_LE(cpu_capability(), machine_cpu_capability());
}

}  // namespace
}  // namespace bitpare
