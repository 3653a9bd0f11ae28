// Tests the selection of masks: every CPU kernel, and the CUDA kernels on the host, against a sort.
#include <algorithm>
#include <numeric>
#include <tuple>

#include "families.h"
#include "kernels/select_mask.h"
#include "on_cuda.h"

namespace bitpare {
namespace {

struct Tensor {
  std::vector<float> x;
  std::vector<uint64_t> before, mask;
  bool has_before = false;
  int64_t least = 0;

  int64_t n() const { return static_cast<int64_t>(x.size()); }
  bool kept(int64_t i) const {
    return !has_before || (before[static_cast<size_t>(i / 64)] >> (i % 64) & 1);
  }
};

using Place = std::tuple<bool, float, size_t, int64_t>;  // in the order of pruning

// Writes masks that prune the first `pruned` of the elements that may be pruned.
std::vector<std::vector<uint64_t>> by_sorting(const std::vector<Tensor>& tensors, int64_t pruned) {
  std::vector<Place> order;
  for (size_t t = 0; t < tensors.size(); ++t) {
    std::vector<Place> mine;
    for (int64_t i = 0; i < tensors[t].n(); ++i) {
      float x = tensors[t].x[static_cast<size_t>(i)];
      mine.emplace_back(tensors[t].kept(i), x == 0.0f ? 0.0f : x, t, i);
    }
    std::sort(mine.begin(), mine.end());
    order.insert(order.end(), mine.begin(), mine.end() - tensors[t].least);
  }
  std::sort(order.begin(), order.end());
  std::vector<std::vector<uint64_t>> masks;
  for (const Tensor& t : tensors) {
    masks.emplace_back(t.mask.size());
    for (int64_t i = 0; i < t.n(); ++i)
      masks.back()[static_cast<size_t>(i / 64)] |= 1ull << (i % 64);
  }
  for (int64_t k = 0; k < pruned; ++k) {
    auto [kept, x, t, i] = order[static_cast<size_t>(k)];
    masks[t][static_cast<size_t>(i / 64)] &= ~(1ull << (i % 64));
  }
  return masks;
}

template <class Where>
int64_t select(std::vector<Tensor>& tensors, const std::vector<int64_t>& groups,
               const std::vector<int64_t>& pruned, const Where& where) {
  std::vector<Scores> scores;
  std::vector<Unaligned<float>> unaligned;
  int64_t parts = 0;
  for (const Tensor& t : tensors) unaligned.emplace_back(t.x);
  for (size_t i = 0; i < tensors.size(); ++i) {
    Tensor& t = tensors[i];
    t.mask.assign(t.mask.size(), 0x5555555555555555ull);
    auto group = static_cast<size_t>(groups[i]);
    scores.push_back({unaligned[i].data(), t.has_before ? t.before.data() : nullptr, t.mask.data(),
                      t.n(), pruned[group], t.least, DType::float32, static_cast<int32_t>(group),
                      static_cast<int32_t>(i), 0, parts});
    parts += select_parts(t.n());
  }
  std::vector<int64_t> ties(static_cast<size_t>(parts + 1), -7);
  std::vector<uint8_t> settled(tensors.size());
  std::vector<SelectGroup> state(tensors.size());
  std::vector<int64_t> buckets(tensors.size() * math::kBuckets);
  int64_t nan = -1;
  SelectMask args = {scores.data(), static_cast<int64_t>(scores.size()),
                     ties.data(),   settled.data(),
                     &nan,          state.data(),
                     buckets.data()};
  select_mask(args, where);
  EXPECT_EQ(ties.back(), -7);
  EXPECT_EQ(std::count(buckets.begin(), buckets.end(), 0), static_cast<int64_t>(buckets.size()));
  return nan;
}

// levels: of the scores; few make ties.
Tensor some_scores(int64_t n, int levels, bool has_before, int64_t least, uint32_t seed) {
  Tensor t;
  std::mt19937 random(seed);
  for (int64_t i = 0; i < n; ++i) {
    auto level = static_cast<int>(random() % static_cast<uint32_t>(2 * levels + 1)) - levels;
    t.x.push_back(static_cast<float>(level) / static_cast<float>(levels));
  }
  for (int64_t w = 0; w < (n + 63) / 64; ++w) {
    t.before.push_back((static_cast<uint64_t>(random()) << 32 | random()) &
                       (static_cast<uint64_t>(random()) << 32 | random()));
  }
  t.mask.resize(t.before.size());
  t.has_before = has_before;
  t.least = least;
  return t;
}

TEST(SelectMask, KeysAreInOrder) {
  std::vector<float> ascending = {-INFINITY, -3.4e38f, -1.0f, -1e-45f, 0.0f,
                                  1e-45f,    1e-38f,   1.0f,  3.4e38f, INFINITY};
  for (size_t i = 1; i < ascending.size(); ++i) {
    EXPECT_LT(math::order_key(ascending[i - 1]), math::order_key(ascending[i]));
  }
  EXPECT_EQ(math::order_key(-0.0f), math::order_key(0.0f));
  EXPECT_GT(math::order_key(NAN), math::order_key(INFINITY));
}

TEST(SelectMask, OneGroupIsASort) {
  for (int levels : {2, 1000000}) {
    for (bool has_before : {false, true}) {
      for (int64_t least : {0, 3}) {
        std::vector<Tensor> tensors;
        int64_t all = 0;
        for (int64_t n : {3, 100, 0, 5000, 70, 2048, 4200}) {
          tensors.push_back(some_scores(n, levels, has_before, std::min(least, n),
                                        static_cast<uint32_t>(n + levels)));
          all += n - std::min(least, n);
        }
        // One tensor whose scores are so low that all of it would go.
        for (float& x : tensors[4].x) x -= 2.0f;
        std::vector<int64_t> groups(tensors.size(), 0);
        for (int64_t pruned : {int64_t{1}, all / 3, all - 40}) {
          auto expected = by_sorting(tensors, pruned);
          everywhere([&](const auto& where, const std::string& name) {
            EXPECT_EQ(select(tensors, groups, {pruned}, where), -1) << name;
            for (size_t t = 0; t < tensors.size(); ++t) {
              EXPECT_EQ(tensors[t].mask, expected[t])
                  << name << " levels " << levels << " before " << has_before << " least " << least
                  << " pruned " << pruned << " tensor " << t;
            }
          });
        }
      }
    }
  }
}

TEST(SelectMask, GroupsAreSelectedByThemselves) {
  std::vector<Tensor> tensors;
  for (int64_t n : {300, 40, 2100, 1}) {
    tensors.push_back(some_scores(n, 9, n % 3 == 0, n > 1 ? 2 : 0, static_cast<uint32_t>(n)));
  }
  std::vector<int64_t> groups = {0, 1, 2, 3}, pruned = {150, 38, 2000, 1};
  everywhere([&](const auto& where, const std::string& name) {
    select(tensors, groups, pruned, where);
    for (size_t t = 0; t < tensors.size(); ++t) {
      EXPECT_EQ(tensors[t].mask, by_sorting({tensors[t]}, pruned[t])[0]) << name << t;
    }
  });
}

TEST(SelectMask, FindsNaN) {
  std::vector<Tensor> tensors;
  for (int64_t n : {300, 5000, 40}) tensors.push_back(some_scores(n, 9, true, 0, 1));
  tensors[1].x[4999] = NAN;
  on_every_cpu([&](const auto& where, const std::string& name) {
    EXPECT_EQ(select(tensors, {0, 0, 0}, {100}, where), 1) << name;
  });
}

TEST(SelectMask, ManyTensors) {  // more than one launch holds
  std::vector<Tensor> tensors;
  int64_t all = 0;
  for (int64_t n = 0; n < 130; ++n) {
    tensors.push_back(some_scores(n, 50, false, std::min<int64_t>(n, 1), static_cast<uint32_t>(n)));
    all += n;
  }
  auto expected = by_sorting(tensors, all / 2);
  everywhere([&](const auto& where, const std::string& name) {
    select(tensors, std::vector<int64_t>(tensors.size(), 0), {all / 2}, where);
    for (size_t t = 0; t < tensors.size(); ++t)
      EXPECT_EQ(tensors[t].mask, expected[t]) << name << t;
  });
}

TEST(SelectMask, NOfM) {
  for_each_type([]<class T>(T) {
    for (GroupLayout l : {GroupLayout{1, 4, 1}, {50, 4, 1}, {10, 8, 9}, {700, 4, 2}, {3, 1, 5}}) {
      for (bool has_before : {false, true}) {
        Tensor t = some_scores(l.n(), 3, has_before, 0, static_cast<uint32_t>(l.n()));
        auto x = narrowed<T>(t.x);
        int64_t keep = (l.members + 1) / 2;
        std::vector<uint64_t> expected(t.mask.size());
        for (int64_t slab = 0; slab < l.slabs; ++slab) {
          for (int64_t p = 0; p < l.inner; ++p) {
            std::vector<Place> order;
            for (int64_t m = 0; m < l.members; ++m) {
              int64_t i = (slab * l.members + m) * l.inner + p;
              float score = math::widen(x[static_cast<size_t>(i)]);
              order.emplace_back(t.kept(i), score == 0.0f ? 0.0f : score, 0, i);
            }
            std::sort(order.begin(), order.end());
            for (int64_t k = l.members - keep; k < l.members; ++k) {
              int64_t i = std::get<3>(order[static_cast<size_t>(k)]);
              expected[static_cast<size_t>(i / 64)] |= 1ull << (i % 64);
            }
          }
        }
        everywhere([&](const auto& where, const std::string& name) {
          auto mask = new_words(l.n());
          select_n_of_m(SelectNOfM{x.data(), has_before ? t.before.data() : nullptr, mask.data(),
                                   kDType<T>, l, keep},
                        where);
          EXPECT_EQ(mask, expected) << name;
        });
      }
    }
  });
}

}  // namespace
}  // namespace bitpare
