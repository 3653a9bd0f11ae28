// Packed masks: by hand, and every CPU kernel and the CUDA ones on the host against that.
#include "families.h"
#include "kernels/apply_mask.h"
#include "kernels/masked_fake_quant.h"
#include "kernels/pack_mask.h"
#include "kernels/remask.h"
#include "on_cuda.h"

namespace bitpare {
namespace {

std::vector<uint8_t> some_kept(int64_t n) {
  auto words = random_words(n);
  std::vector<uint8_t> kept(static_cast<size_t>(n));
  for (size_t i = 0; i < kept.size(); ++i) kept[i] = words[i / 64] >> (i % 64) & 1;
  return kept;
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

// The layouts that the tests of masks go through.
const std::vector<MaskLayout>& layouts() {
  static const std::vector<MaskLayout> all = {{1, 1, 0}, {1, 1, 1}, {1, 1, 130},  {1, 1, 40000},
                                              {5, 7, 1}, {4, 3, 9}, {16, 20, 25}, {70, 64, 9}};
  return all;
}

bool keeps(const std::vector<uint64_t>& mask, const MaskLayout& l, int64_t i) {
  auto bit = static_cast<uint64_t>(math::MaskWalk::from(l, i).bit);
  return mask[bit / 64] >> (bit % 64) & 1;
}

TEST(Masks, FakeQuant) {
  for_each_type([]<class T>(T) {
    for (const MaskLayout& l : layouts()) {
      int64_t n = l.n();
      auto x = narrowed<T>(test_values(n, 9));
      auto mask = random_words(n);
      std::vector<float> scales = {0.1f, 0.7f, 0.02f};
      std::vector<int32_t> zeros = {1, -2, 0};
      Quantizer q;
      q.scale = scales.data();
      q.zero_point = zeros.data();
      q.quant_min = -8;
      q.quant_max = 7;
      if (n % 3 == 0 && n > 0) q.channel = {n / 3, 3};
      for (bool masks_gradient : {false, true}) {
        std::vector<T> expected(x.size());
        std::vector<uint64_t> bits(static_cast<size_t>((n + 63) / 64));
        for (int64_t i = 0; i < n; ++i) {
          auto place = static_cast<size_t>(i);
          auto a = math::affine_of_channel(q, i / q.channel.inner % q.channel.channels);
          auto c = math::quantize<Rounding::nearest>(math::widen(x[place]), a, -8.0f, 7.0f, 0.0f);
          bool kept = keeps(mask, l, i);
          if (kept) math::narrow(math::dequantize(c.code, a), &expected[place]);
          uint64_t passes = c.rounded == c.code && (kept || !masks_gradient);
          bits[place / 64] |= passes << (place % 64);
        }
        everywhere([&](const auto& where, const std::string& name) {
          Unaligned<T> in(x), out(n);
          auto inside = new_words(n);
          MaskedFakeQuant args = {in.data(), mask.data(), out.data(), inside.data(),
                                  l,         kDType<T>,   q,          masks_gradient};
          masked_fake_quant(args, where);
          EXPECT_TRUE(out.intact(n)) << name;
          expect_same_bits(out.values(n), expected, name);
          EXPECT_EQ(inside, bits) << name << n;
          args.inside = nullptr;
          masked_fake_quant(args, where);
          expect_same_bits(out.values(n), expected, name);
        });
      }
    }
  });
}

template <class U>
void expect_remasked() {
  std::vector<std::vector<U>> x;
  std::vector<std::vector<uint64_t>> masks;
  for (const MaskLayout& l : layouts()) {
    auto words = random_words(l.n());
    for (size_t w = 0; w + 1 < words.size(); w += 3) words[w] = w % 2 ? 0 : ~0ull;
    masks.push_back(words);
    x.emplace_back(static_cast<size_t>(l.n()));
    for (size_t i = 0; i < x.back().size(); ++i) {  // with zeros of either sign among them
      x.back()[i] = i % 5 ? static_cast<U>(i * 0x9e3779b97f4a7c15ull)
                          : static_cast<U>(i % 2) << (8 * sizeof(U) - 1);
    }
  }
  everywhere([&](const auto& where, const std::string& name) {
    std::vector<Unaligned<U>> tensors;
    std::vector<Masked> items;
    for (const auto& values : x) tensors.emplace_back(values);
    for (size_t i = 0; i < tensors.size(); ++i) {
      const MaskLayout& l = layouts()[i];
      items.push_back({tensors[i].data(), masks[i].data(), l, l.n(), sizeof(U), 0});
    }
    remask(Remask{items.data(), static_cast<int64_t>(items.size())}, where);
    for (size_t i = 0; i < tensors.size(); ++i) {
      int64_t n = layouts()[i].n();
      auto expected = x[i];
      for (int64_t e = 0; e < n; ++e) {
        if (!keeps(masks[i], layouts()[i], e)) expected[static_cast<size_t>(e)] = 0;
      }
      EXPECT_TRUE(tensors[i].intact(n)) << name;
      EXPECT_EQ(tensors[i].values(n), expected) << name << i;
    }
  });
}

TEST(Masks, Remask) {
  expect_remasked<uint8_t>();
  expect_remasked<uint16_t>();
  expect_remasked<uint32_t>();
  expect_remasked<uint64_t>();
}

}  // namespace
}  // namespace bitpare
