#include "kernels/observe_histogram.h"

#include "kernels/cpu/reduce.h"

namespace bitpare {
namespace {

// Counts whole vectors of one channel. Most hold only finite values, which need no test for each
// lane.
BITPARE_INLINE void count_vector(Vec x, Vec per_bin, int32_t bins, int64_t* counts) {
  constexpr uint64_t kAll = (1ull << kWidth) - 1;
  VecInt bin = math::symmetric_bin(x, per_bin, bins);
  int32_t at[kWidth];
  __builtin_memcpy(at, &bin, sizeof at);
  if (equal_bits(x - x, Vec{}) == kAll) {
#pragma GCC unroll 16
    for (int l = 0; l < kWidth; ++l) ++counts[at[l]];
  } else {
    for (int l = 0; l < kWidth; ++l) {
      if (at[l] >= 0) ++counts[at[l]];
    }
  }
}

// Counts `n` neighbours of one channel.
template <class T>
void count_run(const T* x, int64_t n, float per_bin, int32_t bins, int64_t* counts) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    count_vector(load(x + i), math::splat<Vec>(per_bin), bins, counts);
  }
  for (; i < n; ++i) {
    float value = load_some(x + i, 1)[0];
    int32_t bin = math::symmetric_bin(value, per_bin, bins);
    if (bin >= 0) ++counts[bin];
  }
}

// Counts channels first .. last - 1 of one row, channels innermost.
template <class T>
void count_columns(const ObserveHistogram& args, const T* row, int64_t first, int64_t last,
                   int64_t* counts) {
  for (int64_t c = first; c < last; c += kWidth) {
    int64_t count = at_most(last - c, kWidth);
    Vec limit = count == kWidth ? load(args.limit + c) : load_some(args.limit + c, count);
    Vec x = count == kWidth ? load(row + c) : load_some(row + c, count);
    Vec per_bin = math::splat<Vec>(static_cast<float>(args.bins) * 0.5f) / limit;
    VecInt bin = math::symmetric_bin(x, per_bin, args.bins);
    for (int64_t l = 0; l < count; ++l) {
      if (bin[l] >= 0) ++counts[(c + l) * args.bins + bin[l]];
    }
  }
}

// Counts all values of channels first .. last - 1.
template <class T>
void count_channels(const ObserveHistogram& args, int64_t first, int64_t last) {
  const ReduceLayout& l = args.layout;
  auto x = static_cast<const T*>(args.x);
  for (int64_t o = 0; o < l.outer; ++o) {
    if (math::channels_innermost(l)) {
      count_columns(args, x + o * l.channels, first, last, args.counts);
      continue;
    }
    for (int64_t c = first; c < last; ++c) {
      count_run(x + (o * l.channels + c) * l.inner, l.inner,
                math::bins_per_unit(args.limit[c], args.bins), args.bins,
                args.counts + c * args.bins);
    }
  }
}

// Counts the values of one slot, of all channels.
template <class T>
void count_slot(const ObserveHistogram& args, int64_t slot) {
  const ReduceLayout& l = args.layout;
  auto x = static_cast<const T*>(args.x);
  int64_t size = l.channels * args.bins;
  int64_t* counts = slot == 0 ? args.counts : args.shares + (slot - 1) * size;
  if (slot > 0) __builtin_memset(counts, 0, static_cast<uint64_t>(size) * sizeof(int64_t));
  if (math::channels_innermost(l)) {
    int64_t end = l.outer * (slot + 1) / args.slots;
    for (int64_t o = l.outer * slot / args.slots; o < end; ++o) {
      count_columns(args, x + o * l.channels, 0, l.channels, counts);
    }
    return;
  }
  int64_t chunks = math::chunks_per_row(l), tasks = tasks_of(l);
  for (int64_t t = tasks * slot / args.slots; t < tasks * (slot + 1) / args.slots; ++t) {
    int64_t row = t / chunks, start = t % chunks * kSumChunk, c = row % l.channels;
    count_run(x + row * l.inner + start, at_most(l.inner - start, kSumChunk),
              math::bins_per_unit(args.limit[c], args.bins), args.bins, counts + c * args.bins);
  }
}

template <class T>
void count(const ObserveHistogram& args, ParallelFor parallel_for) {
  const ReduceLayout& l = args.layout;
  if (args.slots <= 1) {
    int64_t values = l.outer * l.inner;
    int64_t grain = values >= kGrain ? 1 : kGrain / (values > 0 ? values : 1);
    parallel(parallel_for, l.channels, grain,
             [&](int64_t first, int64_t last) { count_channels<T>(args, first, last); });
    return;
  }
  parallel(parallel_for, args.slots, 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) count_slot<T>(args, slot);
  });
  int64_t size = l.channels * args.bins;
  parallel(parallel_for, size, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t slot = 1; slot < args.slots; ++slot) {
      const int64_t* share = args.shares + (slot - 1) * size;
      for (int64_t i = first; i < last; ++i) args.counts[i] += share[i];
    }
  });
}

// In place: a new bin is written after it and all that come before were read.
void widen(int64_t* row, bool negative, int64_t half, int32_t k) {
  for (int64_t m = 0; m < half; ++m) {
    row[math::place_of(m, negative, half)] = math::folded_count(row, m, negative, half, k);
  }
}

}  // namespace

// Reads x twice, for its range and for its bins, the second time from the cache if it fits. Threads
// share the channels, or the values if there are fewer channels than threads.
template <>
void observe_histogram(const ObserveHistogram& args, const OnCpu<BITPARE_ISA>& cpu) {
  Quantizer q;
  q.channel = {args.layout.inner, args.layout.channels};
  auto finish = [&](int64_t c, const float* terms) {
    float limit = math::widened_limit(args.limit[c], terms[0]);
    if (args.limit[c] > 0.0f && limit > args.limit[c]) {
      int32_t k = math::doublings(args.limit[c], limit);
      widen(args.counts + c * args.bins, false, args.bins / 2, k);
      widen(args.counts + c * args.bins, true, args.bins / 2, k);
    }
    args.limit[c] = limit;
    if (terms[1] > 0.0f) ++args.skipped[c];
  };
  with_type(args.dtype, [&]<class T>(T*) {
    auto formula = [](const Lanes&, Vec* terms, Vec x) [[gnu::always_inline]] {
      math::largest_terms(x, terms);
      return x;
    };
    reduce<math::Largest, kLargestTerms>(cpu.parallel_for, q, args.layout, args.partial, finish,
                                         formula, static_cast<T*>(nullptr),
                                         static_cast<const T*>(args.x));
    count<T>(args, cpu.parallel_for);
  });
}

}  // namespace bitpare
