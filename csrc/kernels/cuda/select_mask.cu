#include "kernels/cuda/batch.h"
#include "kernels/select_mask.h"

namespace bitpare {
namespace {

using math::Search;

// A block takes one part, a thread eight neighbours.
static_assert(kSelectPart == kPerBlock);

// Searches over the tensors of each group, or over each tensor by itself for the elements that stay
// whatever their score; the mask then keeps these, and the search over groups leaves them out.
struct Run {
  bool by_tensor;
  bool leaves_out;
};

BITPARE_INLINE int32_t group_of(const Scores& s, const Run& run) {
  return run.by_tensor ? s.index : s.group;
}

// Eight neighbours: which may be pruned, and which are masked already.
struct Eight {
  int64_t first;
  uint32_t eligible, masked;
};

BITPARE_INLINE Eight eight_of(const Scores& s, const Run& run) {
  int64_t part = static_cast<int64_t>(blockIdx.x) - s.first_block;
  Eight e = {part * kPerBlock + static_cast<int64_t>(threadIdx.x) * kPerThread, 0, 0};
  if (e.first >= s.n) return e;
  e.eligible = e.first + kPerThread <= s.n ? 0xff : 0xff >> (e.first + kPerThread - s.n);
  if (run.leaves_out) {
    e.eligible &= ~static_cast<uint32_t>(reinterpret_cast<const uint8_t*>(s.mask)[e.first / 8]);
  }
  if (s.before) {
    e.masked = ~static_cast<uint32_t>(reinterpret_cast<const uint8_t*>(s.before)[e.first / 8]);
  }
  e.masked &= e.eligible;
  return e;
}

BITPARE_INLINE uint32_t candidates_of(const Eight& e, const SelectGroup& g) {
  return g.from_masked ? e.masked : e.eligible & ~e.masked;
}

template <class T>
BITPARE_INLINE void keys_of(const Scores& s, const Eight& e, uint32_t* keys) {
  float values[kPerThread];
  load_pack(static_cast<const T*>(s.x), e.first, s.n, values);
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) keys[j] = math::order_key(values[j]);
}

__global__ void __launch_bounds__(kThreads)
    begin_kernel(Batch<Scores> batch, SelectGroup* groups, Run run) {
  int32_t i = static_cast<int32_t>(threadIdx.x);
  if (i >= batch.size) return;
  const Scores& s = batch.items[i];
  // All tensors of a group write the same value.
  groups[group_of(s, run)] = {
      {math::kWholeWindow, run.by_tensor ? s.n - s.least : s.pruned}, 0, false};
}

struct Count {
  int32_t sum;
};

BITPARE_INLINE int32_t ones(uint32_t bits) {
  int32_t count = 0;
  for (; bits; bits &= bits - 1) ++count;
  return count;
}

__global__ void __launch_bounds__(kThreads)
    count_masked_kernel(Batch<Scores> batch, SelectGroup* groups, Run run) {
  BITPARE_SHARED(Count, count);
  if (threadIdx.x == 0) count.sum = 0;
  __syncthreads();
  const Scores& s = item_of(batch, static_cast<int32_t>(blockIdx.x));
  int32_t masked = ones(eight_of(s, run).masked);
  if (masked) atomicAdd(&count.sum, masked);
  __syncthreads();
  if (threadIdx.x != 0 || count.sum == 0) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(&groups[group_of(s, run)].masked),
            static_cast<unsigned long long>(count.sum));
}

__global__ void __launch_bounds__(kThreads) choose_kernel(SelectGroup* groups, int64_t size) {
  int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= size) return;
  SelectGroup& g = groups[i];
  g.from_masked = g.search.below <= g.masked;
  if (!g.from_masked) g.search.below -= g.masked;
}

struct Buckets {
  uint32_t at[math::kBuckets];
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    count_buckets_kernel(Batch<Scores> batch, const SelectGroup* groups, int64_t* buckets,
                         Run run) {
  BITPARE_SHARED(Buckets, mine);
  const Scores& s = item_of(batch, static_cast<int32_t>(blockIdx.x));
  int32_t group = group_of(s, run);
  SelectGroup g = groups[group];
  if (g.search.below == 0) return;
  for (int b = static_cast<int>(threadIdx.x); b < math::kBuckets; b += kThreads) mine.at[b] = 0;
  __syncthreads();
  Eight e = eight_of(s, run);
  uint32_t candidates = candidates_of(e, g), keys[kPerThread];
  if (candidates) {
    keys_of<T>(s, e, keys);
    for (int j = 0; j < kPerThread; ++j) {
      uint32_t bucket = math::bucket_of(keys[j], g.search.window);
      if ((candidates >> j & 1) && bucket < math::kBuckets) atomicAdd(&mine.at[bucket], 1u);
    }
  }
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < math::kBuckets; b += kThreads) {
    if (mine.at[b] == 0) continue;
    int64_t* total = buckets + group * static_cast<int64_t>(math::kBuckets) + b;
    atomicAdd(reinterpret_cast<unsigned long long*>(total),
              static_cast<unsigned long long>(mine.at[b]));
  }
}

struct Sums {
  int64_t at[kThreads];
};

// Returns the sum of `value` over the threads before this one, and writes that of all threads.
__device__ int64_t sum_before(Sums& sums, int64_t value, int64_t* all) {
  sums.at[threadIdx.x] = value;
  __syncthreads();
  int64_t before = 0, total = 0;
  for (int t = 0; t < kThreads; ++t) {
    before += t < static_cast<int>(threadIdx.x) ? sums.at[t] : 0;
    total += sums.at[t];
  }
  __syncthreads();
  *all = total;
  return before;
}

// Each block takes one group: it finds the bucket of the last element to be pruned, and empties the
// buckets.
__global__ void __launch_bounds__(kThreads)
    take_bucket_kernel(SelectGroup* groups, int64_t* buckets) {
  BITPARE_SHARED(Sums, sums);
  constexpr int kRun = math::kBuckets / kThreads;
  SelectGroup& g = groups[blockIdx.x];
  int64_t wanted = g.search.below, sum = 0, total = 0;
  int first = static_cast<int>(threadIdx.x) * kRun;
  int64_t* mine = buckets + blockIdx.x * static_cast<int64_t>(math::kBuckets) + first;
  for (int b = 0; b < kRun; ++b) sum += mine[b];
  int64_t before = sum_before(sums, sum, &total);
  if (before < wanted && wanted <= before + sum) {
    int bucket = 0;
    for (; before + mine[bucket] < wanted; ++bucket) before += mine[bucket];
    g.search.below = wanted - before;
    g.search.window = math::window_of_bucket(g.search.window, first + bucket);
  }
  for (int b = 0; b < kRun; ++b) mine[b] = 0;
}

// below: the bits that are pruned by their score; equal: those of the threshold itself.
struct Verdict {
  uint32_t below, equal;
};

template <class T>
BITPARE_INLINE Verdict verdict_of(const Scores& s, const Eight& e, const SelectGroup& g) {
  uint32_t candidates = candidates_of(e, g), keys[kPerThread];
  Verdict v = {0, 0};
  if (!candidates || g.search.below == 0) return v;
  keys_of<T>(s, e, keys);
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    v.below |= static_cast<uint32_t>(keys[j] < g.search.window.low) << j;
    v.equal |= static_cast<uint32_t>(keys[j] == g.search.window.low) << j;
  }
  return {v.below & candidates, v.equal & candidates};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    count_ties_kernel(Batch<Scores> batch, const SelectGroup* groups, int64_t* ties, Run run) {
  BITPARE_SHARED(Count, count);
  if (threadIdx.x == 0) count.sum = 0;
  __syncthreads();
  const Scores& s = item_of(batch, static_cast<int32_t>(blockIdx.x));
  uint32_t equal = verdict_of<T>(s, eight_of(s, run), groups[group_of(s, run)]).equal;
  if (equal) atomicAdd(&count.sum, ones(equal));
  __syncthreads();
  if (threadIdx.x == 0) {
    ties[s.first_part + static_cast<int64_t>(blockIdx.x) - s.first_block] = count.sum;
  }
}

// Runs as one block for a group. Prunes the first ties: tells each part how many of its own.
__global__ void __launch_bounds__(kThreads)
    share_ties_kernel(const SelectGroup* group, int64_t* ties, int64_t parts) {
  BITPARE_SHARED(Sums, sums);
  int64_t left = group->search.below;
  for (int64_t tile = 0; tile < parts; tile += kThreads) {
    int64_t part = tile + static_cast<int64_t>(threadIdx.x), total = 0;
    int64_t mine = part < parts ? ties[part] : 0;
    int64_t share = left - sum_before(sums, mine, &total);
    if (part < parts) ties[part] = share <= 0 ? 0 : share < mine ? share : mine;
    left -= total;
    if (left < 0) left = 0;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    write_kernel(Batch<Scores> batch, const SelectGroup* groups, const int64_t* ties, Run run) {
  BITPARE_SHARED(Sums, sums);
  const Scores& s = item_of(batch, static_cast<int32_t>(blockIdx.x));
  SelectGroup g = groups[group_of(s, run)];
  Eight e = eight_of(s, run);
  Verdict v = verdict_of<T>(s, e, g);
  int64_t total = 0;
  int64_t ties_left = ties[s.first_part + static_cast<int64_t>(blockIdx.x) - s.first_block] -
                      sum_before(sums, ones(v.equal), &total);
  uint32_t pruned = v.below | (g.from_masked ? 0 : e.masked);
  for (uint32_t equal = v.equal; equal && ties_left > 0; equal &= equal - 1, --ties_left) {
    pruned |= equal & (0u - equal);
  }
  if (e.first >= (s.n + 63) / 64 * 64) return;
  uint32_t valid = e.first >= s.n                ? 0
                   : e.first + kPerThread <= s.n ? 0xff
                                                 : 0xff >> (e.first + kPerThread - s.n);
  reinterpret_cast<uint8_t*>(s.mask)[e.first / 8] = static_cast<uint8_t>(valid & ~pruned);
}

void search(const SelectMask& args, const Run& run, const OnCuda& cuda) {
  auto blocks_of = [](const Scores& s) { return select_parts(s.n); };
  int64_t group_count = run.by_tensor ? args.size : args.scores[args.size - 1].group + 1;
  auto each = [&](auto f) {
    for_each_batch(args.scores, args.size, blocks_of,
                   [&](const Batch<Scores>& batch, int64_t blocks, auto* type) {
                     if (blocks > 0) f(batch, blocks, type);
                   });
  };
  auto groups = [&](const Scores& s) { return run.by_tensor ? s.index : s.group; };
  for_each_batch(args.scores, args.size, blocks_of,
                 [&](const Batch<Scores>& batch, int64_t, auto*) {
                   launch(begin_kernel, 1, kThreads, cuda.stream, batch, args.groups, run);
                 });
  each([&](const Batch<Scores>& batch, int64_t blocks, auto*) {
    launch(count_masked_kernel, blocks, kThreads, cuda.stream, batch, args.groups, run);
  });
  launch(choose_kernel, blocks_for(group_count, kThreads), kThreads, cuda.stream, args.groups,
         group_count);
  for (int32_t pass = 0; pass < math::kPasses; ++pass) {
    each([&]<class T>(const Batch<Scores>& batch, int64_t blocks, T*) {
      launch(count_buckets_kernel<T>, blocks, kThreads, cuda.stream, batch, args.groups,
             args.buckets, run);
    });
    launch(take_bucket_kernel, group_count, kThreads, cuda.stream, args.groups, args.buckets);
  }
  each([&]<class T>(const Batch<Scores>& batch, int64_t blocks, T*) {
    launch(count_ties_kernel<T>, blocks, kThreads, cuda.stream, batch, args.groups, args.ties, run);
  });
  for (int64_t begin = 0, end = 0; begin < args.size; begin = end) {
    int64_t parts = 0;
    for (; end < args.size && groups(args.scores[end]) == groups(args.scores[begin]); ++end) {
      parts += select_parts(args.scores[end].n);
    }
    launch(share_ties_kernel, 1, kThreads, cuda.stream, args.groups + groups(args.scores[begin]),
           args.ties + args.scores[begin].first_part, parts);
  }
  each([&]<class T>(const Batch<Scores>& batch, int64_t blocks, T*) {
    launch(write_kernel<T>, blocks, kThreads, cuda.stream, batch, args.groups, args.ties, run);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) select_n_of_m_kernel(SelectNOfM args, int64_t n) {
  int64_t first = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) * 8;
  if (first >= (n + 63) / 64 * 64) return;
  auto x = static_cast<const T*>(args.x);
  auto read = [x](int64_t i) { return to_float(x[i]); };
  uint32_t bits = 0;
  for (int64_t j = 0; j < 8 && first + j < n; ++j) {
    bool stays = math::stays_in_group(args.layout, args.keep, first + j, read, args.before);
    bits |= static_cast<uint32_t>(stays) << j;
  }
  reinterpret_cast<uint8_t*>(args.mask)[first / 8] = static_cast<uint8_t>(bits);
}

}  // namespace

// Reads the scores once for each window, once for the ties, and once for the mask; and all that
// again for the elements that stay whatever their score, if there are any and a group has several
// tensors.
void select_mask(const SelectMask& args, const OnCuda& cuda) {
  if (args.size == 0) return;
  bool any_stays = false, alone = true;
  for (int64_t i = 0; i < args.size; ++i) {
    any_stays |= args.scores[i].least > 0;
    alone &= args.scores[i].group == i;
  }
  bool leaves_out = any_stays && !alone;
  if (leaves_out) search(args, {true, false}, cuda);
  search(args, {false, leaves_out}, cuda);
}

void select_n_of_m(const SelectNOfM& args, const OnCuda& cuda) {
  int64_t n = args.layout.n();
  if (n == 0) return;
  with_type(args.dtype, [&]<class T>(T*) {
    launch(select_n_of_m_kernel<T>, blocks_for((n + 63) / 64 * 8, kThreads), kThreads, cuda.stream,
           args, n);
  });
}

}  // namespace bitpare
