// The CUDA kernels, run on the CPU by cuda_on_host.h, against the CPU kernels bit for bit, with the
// threads of a block in three orders.
#include "bn_family.h"
#include "families.h"
#include "list_families.h"
#include "on_cuda.h"

namespace bitpare {
namespace {

const OnCpu<Baseline> kCpu = {serial};

template <class T>
void expect_same(const Elementwise<T>& got, const Elementwise<T>& expected,
                 const std::string& what) {
  EXPECT_TRUE(got.intact) << what << " wrote outside its range";
  expect_same_bits(got.y, expected.y, what);
  expect_same_bits(got.bits, expected.bits, what + " bits");
}

template <class T>
void expect_same(const Reduced<T>& got, const Reduced<T>& expected, const std::string& what) {
  expect_same_bits(got.dx, expected.dx, what + " elements");
  expect_same_bits(got.first, expected.first, what + " first");
  expect_same_bits(got.second, expected.second, what + " second");
  expect_same_bits(got.counts, expected.counts, what + " counts");
}

// Calls run(case, where) on a CPU and on CUDA, for each case and type.
template <class Run>
void compare(const std::vector<Case>& cases, Run run) {
  for_each_type([&]<class T>(T type) {
    for (const Case& c : cases) {
      auto expected = run(type, c, kCpu);
      on_cuda([&](const OnCuda& cuda, const std::string& order) {
        expect_same(run(type, c, cuda), expected, order + c.name());
      });
    }
  });
}

TEST(OnHost, FakeQuant) {
  compare(all_cases(), []<class T>(T, const Case& c, const auto& where) {
    return run_fake_quant<T>(c, test_values(c.n(), 1), where);
  });
}

TEST(OnHost, Estimators) {
  for (Estimator estimator : {Estimator::ewgs, Estimator::tanh}) {
    compare(all_cases(), [=]<class T>(T, const Case& c, const auto& where) {
      return run_estimator<T>(c, finite_values(c.n(), 3), test_values(c.n(), 2), estimator, where);
    });
  }
}

TEST(OnHost, ActFakeQuant) {
  for_each_type([]<class T>(T) {
    for (const ActCase& a : act_cases()) {
      for (const Case& c : flat_cases()) {
        if (c.n() > 5000 && (a.has_other || a.activation != Activation::relu)) continue;
        bool odd = c.n() % 2 == 0;
        auto x = odd ? test_values(c.n(), 31) : finite_values(c.n(), 31);
        auto other = finite_values(c.n(), 32);
        auto expected = run_act_fake_quant<T>(c, a, x, other, kCpu);
        on_cuda([&](const OnCuda& cuda, const std::string& order) {
          auto got = run_act_fake_quant<T>(c, a, x, other, cuda);
          expect_same(got.elements, expected.elements, order + c.name() + a.name());
          expect_same_bits(got.pending, expected.pending, order + " pending " + c.name());
        });
      }
    }
  });
  for (Activation activation : {Activation::hardswish, Activation::hardsigmoid}) {
    compare(flat_cases(), [=]<class T>(T, const Case& c, const auto& where) {
      return run_act_gradient<T>(finite_values(c.n(), 34), test_values(c.n(), 33),
                                 random_words(c.n()), activation, where);
    });
  }
}

TEST(OnHost, StraightThrough) {
  compare(layouts(), []<class T>(T, const Case& c, const auto& where) {
    std::mt19937_64 random(17);
    auto bits = new_words(c.n());
    for (auto& word : bits) word = random();
    return run_straight_through<T>(test_values(c.n(), 4), bits, where);
  });
}

TEST(OnHost, FakeFloat) {
  compare(all_cases(), []<class T>(T, const Case& c, const auto& where) {
    return run_fake_float<T>(c, test_values(c.n(), 5, 100.0f), {3, -6, 448.0f}, where);
  });
}

TEST(OnHost, Binarize) {
  for (Levels levels : {Levels::sign, Levels::zero_one, Levels::minus_one_zero, Levels::ternary}) {
    compare(layouts(), [=]<class T>(T, const Case& c, const auto& where) {
      return run_binarize<T>(c, test_values(c.n(), 6), levels, where);
    });
    compare(layouts(), [=]<class T>(T, const Case& c, const auto& where) {
      return run_binarize_gradient<T>(c, finite_values(c.n(), 11), finite_values(c.n(), 10), levels,
                                      where);
    });
  }
}

TEST(OnHost, Quantize) {
  for_each_type([]<class T>(T) {
    for (const Case& c : layouts()) {
      auto x = finite_values(c.n(), 7);
      auto codes = run_quantize<T, int8_t>(c, x, IntType::int8, kCpu);
      auto back = run_dequantize<T, int8_t>(c, codes.y, IntType::int8, kCpu);
      on_cuda([&](const OnCuda& cuda, const std::string& order) {
        expect_same(run_quantize<T, int8_t>(c, x, IntType::int8, cuda), codes, order + c.name());
        expect_same(run_dequantize<T, int8_t>(c, codes.y, IntType::int8, cuda), back,
                    order + c.name());
      });
    }
  });
}

TEST(OnHost, FakeQuantLsq) {
  compare(all_cases(), []<class T>(T, const Case& c, const auto& where) {
    return run_lsq<T>(c, finite_values(c.n(), 9), finite_values(c.n(), 8), where);
  });
  // More pieces than a block has threads, so that its runs are longer than one.
  compare({{{1, 1, 400 * kSumChunk + 5}}, {{17000, 2, 1}}, {{700, 2, 3}}},
          []<class T>(T, const Case& c, const auto& where) {
            return run_lsq<T>(c, finite_values(c.n(), 9), finite_values(c.n(), 8), where);
          });
}

TEST(OnHost, MeanMagnitude) {
  for (bool thresholds : {false, true}) {
    compare(layouts(), [=]<class T>(T, const Case& c, const auto& where) {
      return run_mean_magnitude<T>(c, finite_values(c.n(), 12), thresholds, where);
    });
  }
}

TEST(OnHost, MinMax) {
  for (int32_t bins : {0, 10}) {
    compare(layouts(), [=]<class T>(T, const Case& c, const auto& where) {
      return run_minmax<T>(c, test_values(c.n(), 13), bins, 1, where);
    });
  }
}

template <class T>
void compare_bn(const std::vector<BnCase>& cases) {
  for (const BnCase& c : cases) {
    auto x = bn_values(c), dy = finite_values(c.n(), 26);
    auto expected = run_bn<T>(c, x, dy, kCpu);
    on_cuda([&](const OnCuda& cuda, const std::string& order) {
      expect_same(run_bn<T>(c, x, dy, cuda), expected, order + c.name());
    });
  }
}

TEST(OnHost, BnActFakeQuant) {
  for_each_type([]<class T>(T) { compare_bn<T>(bn_layouts()); });
  compare_bn<float>(bn_modes());
  // More sums than a block has threads, so that its runs are longer than one.
  compare_bn<float>({{{17000, 2, 1}}, {{300, 2, 3}}});
}

TEST(OnHost, PackBits) {
  for (int bits : {1, 2, 4}) {
    std::vector<uint8_t> codes(3 * 37);
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i % (1u << bits));
    int64_t row_bytes = (37 * bits + 7) / 8;
    on_cuda([&](const OnCuda& cuda, const std::string&) {
      std::vector<uint8_t> packed(static_cast<size_t>(3 * row_bytes)), expected(packed);
      std::vector<uint8_t> back(codes.size());
      pack_bits(PackBits{codes.data(), packed.data(), 3, 37, bits, false, nullptr}, cuda);
      pack_bits(PackBits{codes.data(), expected.data(), 3, 37, bits, false, nullptr}, kCpu);
      EXPECT_EQ(packed, expected);
      unpack_bits(UnpackBits{packed.data(), back.data(), 3, 37, bits, false}, cuda);
      EXPECT_EQ(back, codes);
    });
  }
}

TEST(OnHost, Qparams) {
  std::vector<float> low = finite_values(300, 14), high(low), scale(300), expected(300);
  std::vector<int32_t> zero_point(300), expected_zero_point(300);
  for (float& h : high) h = h * h + 1;
  for (float& l : low) l = -l * l;
  RangeRule rule = {0, 255, false, false};
  qparams(QparamsFromRange{low.data(), high.data(), scale.data(), zero_point.data(), 300, rule},
          OnCuda{nullptr});
  qparams(QparamsFromRange{low.data(), high.data(), expected.data(), expected_zero_point.data(),
                           300, rule},
          kCpu);
  expect_same_bits(scale, expected, "scale");
  EXPECT_EQ(zero_point, expected_zero_point);
}

TEST(OnHost, UpdateRanges) {
  for (const UpdateRule& rule : update_rules()) {
    auto expected = run_update_ranges(rule, kCpu);
    on_cuda([&](const OnCuda& cuda, const std::string& order) {
      expect_same(run_update_ranges(rule, cuda), expected, order);
    });
  }
}

TEST(OnHost, FakeQuantWeights) {
  for_each_type([]<class T>(T) {
    auto expected = run_weights<T>(false, false, kCpu);
    on_cuda([&](const OnCuda& cuda, const std::string& order) {
      expect_same(run_weights<T>(false, true, cuda), expected, order);
    });
  });
}

// Tests of the emulation itself: the errors it must catch, and what warps see.
__global__ void neighbour_sum(const float* x, float* y, bool with_barrier) {
  struct Values {
    float at[64];
  };
  BITPARE_SHARED(Values, shared);
  shared.at[threadIdx.x] = x[threadIdx.x];
  if (with_barrier) __syncthreads();
  y[threadIdx.x] = shared.at[threadIdx.x] + shared.at[(threadIdx.x + 1) % 64];
}

TEST(OnHost, CatchesAMissingBarrier) {
  std::vector<float> x(64, 1.0f), y(64);
  on_cuda([&](const OnCuda& cuda, const std::string&) {
    launch(neighbour_sum, 1, 64, cuda.stream, x.data(), y.data(), true);
    EXPECT_EQ(y, std::vector<float>(64, 2.0f));
    launch(neighbour_sum, 1, 64, cuda.stream, x.data(), y.data(), false);
    EXPECT_NE(y, std::vector<float>(64, 2.0f));
  });
}

}  // namespace
}  // namespace bitpare
