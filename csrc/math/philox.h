// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", 2011). The same bits on every device, in any order, and after a resume.
#pragma once
#include "math/value.h"

namespace bitpare::math {

// Element i of a tensor, counted in memory order, uses word (i % 64) / 16 of counter
// 16 * (i / 64) + i % 16, so that 16 neighbours come from 16 counters and need no shuffle.
constexpr int64_t kPhiloxBlock = 64;
constexpr int64_t kPhiloxWords = 4;

struct PhiloxKey {
  uint32_t seed_low, seed_high, step_low, step_high;
};

// rng: int64[2], a seed and a step; null where no random numbers are needed.
BITPARE_INLINE PhiloxKey philox_key(const int64_t* rng) {
  if (!rng) return {};
  uint64_t seed = static_cast<uint64_t>(rng[0]), step = static_cast<uint64_t>(rng[1]);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32)};
}

template <class V>
struct PhiloxWords {
  typename Value<V>::Uint word[kPhiloxWords];
};

template <class V>
BITPARE_INLINE PhiloxWords<V> philox(typename Value<V>::Uint counter_low, uint32_t counter_high,
                                     PhiloxKey key) {
  using Uint = typename Value<V>::Uint;
  const Uint multiplier_0 = Uint{} + 0xD2511F53u, multiplier_1 = Uint{} + 0xCD9E8D57u;
  Uint a = counter_low, b = Uint{} + counter_high;
  Uint c = Uint{} + key.step_low, d = Uint{} + key.step_high;
  uint32_t key_0 = key.seed_low, key_1 = key.seed_high;
  for (int round = 0; round < 10; ++round) {
    Uint high_0 = Value<V>::high_product(multiplier_0, a), low_0 = multiplier_0 * a;
    Uint high_1 = Value<V>::high_product(multiplier_1, c), low_1 = multiplier_1 * c;
    a = high_1 ^ b ^ key_0;
    b = low_1;
    c = high_0 ^ d ^ key_1;
    d = low_0;
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
  return {{a, b, c, d}};
}

// A number in [0, 1) from the top 24 bits of a word, exactly.
template <class V>
BITPARE_INLINE V uniform_from(typename Value<V>::Uint word) {
  using Int = typename Value<V>::Int;
  return Value<V>::to_float((Int)(word >> 8)) * splat<V>(0x1p-24f);
}

// The number of element i alone.
BITPARE_INLINE float uniform_at(int64_t i, PhiloxKey key) {
  int64_t block = i / kPhiloxBlock, within = i % kPhiloxBlock;
  uint64_t counter = static_cast<uint64_t>(block) * 16 + static_cast<uint64_t>(within % 16);
  PhiloxWords<float> words =
      philox<float>(static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), key);
  return uniform_from<float>(words.word[within / 16]);
}

}  // namespace bitpare::math
