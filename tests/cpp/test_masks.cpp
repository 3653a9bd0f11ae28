// Packed masks: by hand, and every CPU kernel and the CUDA ones on the host against that.
#include "families.h"
#include "kernels/apply_mask.h"
#include "kernels/pack_mask.h"
#include "on_cuda.h"

namespace bitpare {
namespace {

std::vector<uint8_t> some_kept(int64_t n) {
  auto words = random_words(n);
  std::vector<uint8_t> kept(static_cast<size_t>(n));
  for (size_t i = 0; i < kept.size(); ++i) kept[i] = words[i / 64] >> (i % 64) & 1;
  return kept;
}

// f(where, name) on every instruction set, and on CUDA.
template <class F>
void everywhere(F f) {
  on_every_cpu(f);
  on_cuda(f);
}

TEST(Masks, PackAndUnpack) {
  for (int64_t n : {0, 1, 7, 8, 9, 63, 64, 65, 200, 1000, 40000}) {
    auto kept = some_kept(n);
    std::vector<uint64_t> expected(static_cast<size_t>((n + 63) / 64));
    for (size_t i = 0; i < kept.size(); ++i) {
      expected[i / 64] |= static_cast<uint64_t>(kept[i]) << (i % 64);
    }
    everywhere([&](const auto& where, const std::string& name) {
      Unaligned<uint8_t> in(kept), back(n);
      auto mask = new_words(n);
      pack_mask(PackMask{in.data(), mask.data(), n}, where);
      EXPECT_EQ(mask, expected) << name << " " << n;
      unpack_mask(UnpackMask{mask.data(), back.data(), n}, where);
      EXPECT_TRUE(back.intact(n)) << name;
      EXPECT_EQ(back.values(n), kept) << name << " " << n;
    });
  }
}

TEST(Masks, WalkKnowsTheLogicalOrder) {
  MaskLayout l = {3, 4, 5};
  for (int64_t element = 0; element < l.n(); ++element) {
    int64_t row = element / 20, place = element % 20 / 4, channel = element % 4;
    EXPECT_EQ(math::MaskWalk::from(l, element).bit, row * 20 + channel * 5 + place);
  }
  auto walk = math::MaskWalk::from(l, 0);
  for (int64_t element = 0; element < l.n(); ++element) {
    EXPECT_EQ(walk.bit, math::MaskWalk::from(l, element).bit) << element;
    math::MaskWalk::next(l, &walk);
  }
}

TEST(Masks, Apply) {
  for_each_type([]<class T>(T) {
    for (MaskLayout l : {MaskLayout{1, 1, 0},
                         {1, 1, 1},
                         {1, 1, 130},
                         {1, 1, 40000},
                         {5, 7, 1},
                         {6, 1, 9},
                         {4, 3, 9},
                         {16, 20, 25},
                         {70, 64, 9}}) {
      int64_t n = l.n();
      auto x = narrowed<T>(test_values(n, 9));  // with NaN and infinities
      auto mask = random_words(n);
      std::vector<T> expected(x.size());
      for (int64_t i = 0; i < n; ++i) {
        auto bit = static_cast<uint64_t>(math::MaskWalk::from(l, i).bit);
        if (mask[bit / 64] >> (bit % 64) & 1) {
          expected[static_cast<size_t>(i)] = x[static_cast<size_t>(i)];
        }
      }
      everywhere([&](const auto& where, const std::string& name) {
        Unaligned<T> in(x), out(n);
        apply_mask(ApplyMask{in.data(), out.data(), mask.data(), kDType<T>, l}, where);
        EXPECT_TRUE(out.intact(n)) << name;
        expect_same_bits(out.values(n), expected, name);
        apply_mask(ApplyMask{in.data(), in.data(), mask.data(), kDType<T>, l}, where);
        expect_same_bits(in.values(n), expected, name + " in place");
      });
    }
  });
}

}  // namespace
}  // namespace bitpare
