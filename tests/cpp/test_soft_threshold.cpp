// Soft thresholding: by hand, and the kernels against the formula.
#include "by_formula.h"
#include "kernels/soft_threshold.h"
#include "math/soft_threshold.h"
#include "on_cuda.h"

namespace bitpare {
namespace {

TEST(SoftThreshold, HandValues) {
  EXPECT_EQ(math::soft_threshold(2.0f, 0.5f), 1.5f);
  EXPECT_EQ(math::soft_threshold(-2.0f, 0.5f), -1.5f);
  EXPECT_EQ(math::soft_threshold(INFINITY, 0.5f), INFINITY);
  for (float x : {0.5f, -0.5f, 0.25f, 0.0f, -0.0f}) {
    EXPECT_EQ(comparable(math::soft_threshold(x, 0.5f)), comparable(0.0f)) << x;
  }
  EXPECT_TRUE(std::isnan(math::soft_threshold(NAN, 0.5f)));
}

TEST(SoftThreshold, IsTheFormula) {
  for_each_type([]<class T>(T) {
    for (const Case& c : flat_cases()) {
      for (float threshold : {0.0f, 0.5f}) {
        auto x = test_values(c.n(), 61);
        auto expected = elementwise<T>(c, x, {}, [&](int64_t, float v, auto, bool* inside) {
          *inside = !(math::absolute(v) <= threshold);
          return math::soft_threshold(v, threshold);
        });
        everywhere([&](const auto& where, const std::string& name) {
          Unaligned<T> in(narrowed<T>(x)), out(c.n());
          auto bits = new_words(c.n());
          soft_threshold(
              SoftThreshold{in.data(), out.data(), bits.data(), c.n(), kDType<T>, threshold},
              where);
          expect_same({out.values(c.n()), bits, out.intact(c.n())}, expected, name + c.name());
        });
      }
    }
  });
}

}  // namespace
}  // namespace bitpare
