// Sums and maxima over one row of floats, in the order of math/reduce.h, by formulas that read and
// write for themselves.
#pragma once
#include "kernels/cpu/reduce.h"

namespace bitpare {
namespace {

// Reads elements at .. at + count - 1; other lanes are 0.
template <class T>
BITPARE_INLINE Vec read(const T* p, int64_t at, int64_t count) {
  return count == kWidth ? load(p + at) : load_some(p + at, count);
}
template <class T>
BITPARE_INLINE void write(T* p, int64_t at, int64_t count, Vec v) {
  if (count == kWidth) {
    store(p + at, v);
  } else {
    store_some(p + at, v, count);
  }
}

// f(at, count) for the vectors of [0, n).
template <class F>
BITPARE_INLINE void for_each_vector(int64_t n, F f) {
  int64_t at = 0;
#pragma GCC unroll 4
  for (; at + kWidth <= n; at += kWidth) f(at, static_cast<int64_t>(kWidth));
  if (at < n) f(at, n - at);
}

// f(at, count, terms) writes one vector of each term that has its bit in kUsed; the others' sums
// are 0. partial: kTerms floats for each chunk.
template <int kTerms, int kUsed = (1 << kTerms) - 1, class F>
BITPARE_INLINE void sum_row(int64_t n, float* partial, float* sums, F f) {
  int64_t chunks = math::chunks_of(n);
  for (int64_t c = 0; c < chunks; ++c) {
    int64_t begin = c * kSumChunk, end = at_most(begin + kSumChunk, n);
    Vec lanes[kTerms][kLaneVectors] = {};
    auto add = [&](int64_t v, int64_t at, int64_t count) [[gnu::always_inline]] {
      Vec terms[kTerms];
      f(at, count, terms);
#pragma GCC unroll 8
      for (int t = 0; t < kTerms; ++t) {
        if (!(kUsed >> t & 1)) continue;
        if (count < kWidth) {
          terms[t] = lane_numbers() < static_cast<int32_t>(count) ? terms[t] : Vec{};
        }
        lanes[t][v] += terms[t];
      }
    };
    int64_t at = begin;
    for (; at + kSumLanes <= end; at += kSumLanes) {
#pragma GCC unroll 8
      for (int64_t v = 0; v < kLaneVectors; ++v) add(v, at + v * kWidth, kWidth);
    }
    for (int64_t v = 0; at < end; ++v, at += kWidth) add(v, at, at_most(end - at, kWidth));
    for (int t = 0; t < kTerms; ++t) {
      float all[kSumLanes];
      for (int64_t v = 0; v < kLaneVectors; ++v) store(all + v * kWidth, lanes[t][v]);
      partial[t * chunks + c] = math::fold_lanes<math::Sum>(t, all);
    }
  }
  for (int t = 0; t < kTerms; ++t) {
    sums[t] = math::fold_pairs<math::Sum>(t, partial + t * chunks, chunks, 1);
  }
}

// Returns the sum of an array.
BITPARE_INLINE float sum_of(const float* p, int64_t n, float* partial) {
  float sum;
  sum_row<1>(n, partial, &sum,
             [&](int64_t at, int64_t count, Vec* terms) { terms[0] = read(p, at, count); });
  return sum;
}

// The largest element; -infinity if there is none. NaN is skipped.
BITPARE_INLINE float greatest(const float* p, int64_t n) {
  Vec most[4];
  for (Vec& m : most) m = math::splat<Vec>(-__builtin_inff());
  int64_t at = 0;
  for (; at + 4 * kWidth <= n; at += 4 * kWidth) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      Vec x = load(p + at + v * kWidth);
      most[v] = x > most[v] ? x : most[v];
    }
  }
  float all[kWidth], result = -__builtin_inff();
  for (Vec m : most) {
    store(all, m);
    for (float x : all) result = x > result ? x : result;
  }
  for (; at < n; ++at) result = p[at] > result ? p[at] : result;
  return result;
}

}  // namespace
}  // namespace bitpare
