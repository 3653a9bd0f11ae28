// Splits several arrays into units, so that small and large arrays share the threads evenly.
#pragma once
#include "kernels/cpu/blocks.h"

namespace bitpare {
namespace {

// f(i, first, last) for the elements of array i, of size_of(i), that units [begin, end) hold.
template <int64_t kUnit, class Size, class F>
void for_each_piece(int64_t arrays, Size size_of, int64_t begin, int64_t end, F f) {
  int64_t unit = 0;
  for (int64_t i = 0; i < arrays && unit < end; ++i) {
    int64_t n = size_of(i), units = (n + kUnit - 1) / kUnit;
    int64_t first = begin > unit ? begin - unit : 0, last = end - unit < units ? end - unit : units;
    unit += units;
    if (first >= last) continue;
    f(i, first * kUnit, last * kUnit < n ? last * kUnit : n);
  }
}

// f over all units, in parallel.
template <int64_t kUnit, class Size, class F>
void parallel_pieces(ParallelFor parallel_for, int64_t arrays, Size size_of, F f) {
  int64_t units = 0;
  for (int64_t i = 0; i < arrays; ++i) units += (size_of(i) + kUnit - 1) / kUnit;
  parallel(parallel_for, units, kGrain / kUnit, [&](int64_t begin, int64_t end) {
    for_each_piece<kUnit>(arrays, size_of, begin, end, f);
  });
}

}  // namespace
}  // namespace bitpare
