#include "kernels/select_mask.h"

#include "kernels/cpu/pieces.h"

namespace bitpare {
namespace {

using math::Search;
using math::Window;

int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t ones(uint64_t word) { return __builtin_popcountll(word); }

// The elements of the block that begins at i.
uint64_t valid_word(int64_t n, int64_t i) {
  return n - i >= kBlock ? ~0ull : ~0ull >> (kBlock - (n - i));
}

uint64_t kept_before(const Scores& s, int64_t i) {
  return s.before ? s.before[i / kBlock] & valid_word(s.n, i) : valid_word(s.n, i);
}

// The tensors of one selection: those of a group that are not settled yet.
struct Active {
  const Scores* scores;
  const uint8_t* settled;
  int64_t size;

  int64_t size_of(int64_t i) const { return settled[i] ? 0 : scores[i].n; }
};

// f(i, first, last), in parallel; pieces are whole parts.
template <class F>
void parallel_parts(ParallelFor parallel_for, const Active& active, F f) {
  parallel_pieces<kSelectPart>(
      parallel_for, active.size, [&](int64_t i) { return active.size_of(i); }, f);
}

// Which elements are looked at: those masked already, or the others.
struct Pool {
  bool from_masked;

  uint64_t candidates(const Scores& s, int64_t i) const {
    uint64_t kept = kept_before(s, i);
    return from_masked ? valid_word(s.n, i) & ~kept : kept;
  }
  // Pruned without a look at their score.
  uint64_t pruned(const Scores& s, int64_t i) const {
    return from_masked ? 0 : valid_word(s.n, i) & ~kept_before(s, i);
  }
};

// The keys of a block, in vectors. Past the end they are those of 0.
struct Keys {
  VecUint at[kVectors];
};

template <class T>
BITPARE_INLINE Vec scores_at(const T* x, int64_t i, int64_t n) {
  if (n - i >= kWidth) return load(x + i);
  return n > i ? load_some(x + i, n - i) : Vec{};
}

template <class T>
BITPARE_INLINE Keys keys_of(const Scores& s, int64_t i) {
  Keys keys;
  auto x = static_cast<const T*>(s.x);
#pragma GCC unroll 16
  for (int64_t k = 0; k < kVectors; ++k) {
    keys.at[k] = math::order_key(scores_at(x, i + k * kWidth, s.n));
  }
  return keys;
}

// The bits that f gives of each vector of keys.
template <class F>
BITPARE_INLINE uint64_t bits_where(const Keys& keys, F f) {
  uint64_t word = 0;
#pragma GCC unroll 16
  for (int64_t k = 0; k < kVectors; ++k) word |= f(keys.at[k]) << (k * kWidth);
  return word;
}

VecUint splat_key(uint32_t key) { return VecUint{} + key; }

bool holds_nan(const Keys& keys) {
  VecUint least = splat_key(math::kLeastKey), count = splat_key(math::kNumberKeys);
  return ~bits_where(keys, [&](VecUint key) { return less_bits(key - least, count); });
}

// Several counters for each bucket, since neighbours often share one.
constexpr int64_t kCopies = 4;

// The numbers of candidates before a window, and in each of its buckets.
struct Counts {
  int64_t before = 0;
  int32_t at[math::kBuckets * kCopies] = {};

  int64_t of(int64_t bucket) const {
    int64_t sum = 0;
    for (int64_t c = 0; c < kCopies; ++c) sum += at[bucket * kCopies + c];
    return sum;
  }
};

// kFirst: what lies before the window is not known yet.
template <bool kFirst>
BITPARE_INLINE void count(const Keys& keys, uint64_t candidates, const Window& w, Counts* counts) {
  if constexpr (kFirst) {
    VecUint low = splat_key(w.low);
    counts->before +=
        ones(bits_where(keys, [&](VecUint key) { return less_bits(key, low); }) & candidates);
  }
  VecUint end = splat_key(math::kBuckets);
  uint64_t wanted = candidates & bits_where(keys, [&](VecUint key) {
                      return less_bits(math::bucket_of(key, w), end);
                    });
  if (!wanted) return;
  uint32_t bucket[kBlock];
#pragma GCC unroll 16
  for (int64_t k = 0; k < kVectors; ++k) {
    VecUint b = math::bucket_of(keys.at[k], w);
    __builtin_memcpy(bucket + k * kWidth, &b, sizeof b);
  }
  if (wanted == ~0ull) {
    for (int64_t j = 0; j < kBlock; ++j) ++counts->at[bucket[j] * kCopies + j % kCopies];
    return;
  }
  for (; wanted; wanted &= wanted - 1) {
    int64_t j = __builtin_ctzll(wanted);
    ++counts->at[bucket[j] * kCopies + j % kCopies];
  }
}

// Goes on to the bucket of the last one to be pruned. Returns how many candidates it holds, 0 where
// the window does not hold that one.
template <class CountOf>
int64_t take_bucket(int64_t before, CountOf count_of, Search* search) {
  int64_t below = search->below - before;
  if (below <= 0) return 0;
  for (int32_t bucket = 0; bucket < math::kBuckets; ++bucket) {
    int64_t here = count_of(bucket);
    if (below <= here) {
      *search = {math::window_of_bucket(search->window, bucket), below};
      return here;
    }
    below -= here;
  }
  return 0;
}

// Keys that stand for all candidates: a guess of the window takes the place of a pass over them.
constexpr int64_t kSample = 8192;
// Neighbours are alike, so that few of them are taken from one place.
constexpr int64_t kSampledNeighbours = 16;

// The key of a rank among the sample.
uint32_t key_of_rank(const uint32_t* keys, int64_t size, int64_t rank) {
  Search search = {math::kWholeWindow, rank + 1};
  for (int32_t pass = 0; pass < math::kPasses; ++pass) {
    int32_t counts[math::kBuckets] = {};
    for (int64_t i = 0; i < size; ++i) {
      uint32_t bucket = math::bucket_of(keys[i], search.window);
      if (bucket < math::kBuckets) ++counts[bucket];
    }
    take_bucket(0, [&](int32_t bucket) { return counts[bucket]; }, &search);
  }
  return search.window.low;
}

// A window around the rank `below` of `all` that the sample allows for.
Window guessed_window(const uint32_t* keys, int64_t size, int64_t below, int64_t all) {
  double share = static_cast<double>(below) / static_cast<double>(all);
  int64_t rank = static_cast<int64_t>(share * static_cast<double>(size));
  int64_t margin = 16;  // of several times what chance does: 4 sqrt(size share (1 - share))
  double spread = 16.0 * static_cast<double>(size) * share * (1.0 - share);
  while (static_cast<double>(margin * margin) < spread) margin += 16;
  int64_t first = rank - margin, last = rank + margin;
  uint32_t low = first < 0 ? 0 : key_of_rank(keys, size, first);
  uint32_t high = last >= size ? ~0u : key_of_rank(keys, size, last);
  int32_t shift = 0;
  while ((high - low) >> shift >= math::kBuckets) ++shift;
  return {low, shift};
}

// Bits that are pruned by their score, and those of the threshold itself.
struct Verdict {
  uint64_t below, equal;
};

BITPARE_INLINE Verdict verdict_of(const Keys& keys, uint32_t threshold, uint64_t candidates) {
  VecUint t = splat_key(threshold);
  return {bits_where(keys, [&](VecUint key) { return less_bits(key, t); }) & candidates,
          bits_where(keys, [&](VecUint key) { return equal_bits(key, t); }) & candidates};
}

// The mask of a piece, ties still in it, and how many of those each part has.
template <class T>
void write_piece(const Scores& s, const Pool& pool, const Search* search, int64_t first,
                 int64_t last, int64_t* ties) {
  for (int64_t i = first; i < last; i += kBlock) {
    if ((i - first) % kSelectPart == 0) ties[i / kSelectPart] = 0;
    uint64_t candidates = pool.candidates(s, i), pruned = pool.pruned(s, i);
    if (search && candidates) {
      Verdict v = verdict_of(keys_of<T>(s, i), search->window.low, candidates);
      pruned |= v.below;
      ties[i / kSelectPart] += ones(v.equal);
    }
    s.mask[i / kBlock] = valid_word(s.n, i) & ~pruned;
  }
}

// Prunes the first `count` ties of a part.
template <class T>
void prune_ties(const Scores& s, const Pool& pool, uint32_t threshold, int64_t part,
                int64_t count) {
  for (int64_t i = part * kSelectPart; count > 0; i += kBlock) {
    uint64_t equal = verdict_of(keys_of<T>(s, i), threshold, pool.candidates(s, i)).equal;
    uint64_t gone = equal;
    if (ones(equal) > count) {
      gone = 0;
      for (int64_t left = count; left > 0; --left, equal &= equal - 1) gone |= equal & -equal;
    }
    s.mask[i / kBlock] &= ~gone;
    count -= ones(gone);
  }
}

// A candidate that is looked at by itself; so few of them are sorted.
struct Few {
  uint32_t key;
  int64_t tensor, place;

  bool before(const Few& other) const {
    if (key != other.key) return key < other.key;
    return tensor != other.tensor ? tensor < other.tensor : place < other.place;
  }
};
constexpr int64_t kFew = 256;

class Selection {
 public:
  Selection(const Active& active, int64_t* ties, int64_t* nan, ParallelFor parallel_for)
      : active_(active), ties_(ties), nan_(nan), parallel_for_(parallel_for) {}

  // Writes masks that prune the first `pruned` of all elements.
  void run(int64_t pruned) {
    int64_t all = 0, masked = count_masked();
    for (int64_t i = 0; i < active_.size; ++i) all += active_.size_of(i);
    pool_.from_masked = pruned <= masked;
    int64_t candidates = pool_.from_masked ? masked : all - masked;
    search_ = {math::kWholeWindow, pool_.from_masked ? pruned : pruned - masked};
    if (search_.below == 0) {
      find_nan();
      write(nullptr);
      return;
    }
    Search whole = search_;
    if (candidates > 16 * kSample) guess(all, candidates);
    int32_t shift = search_.window.shift;
    int64_t held = narrow<true>();
    if (held == 0) {  // the guess was wrong
      search_ = whole;
      shift = search_.window.shift;
      held = narrow<true>();
    }
    while (shift > 0 && held > kFew) {
      shift = search_.window.shift;
      held = narrow<false>();
    }
    if (held <= kFew) return write_but_few(shift);
    write(&search_);
    share_ties();
  }

 private:
  int64_t count_masked() const {
    int64_t masked = 0;
    for (int64_t i = 0; i < active_.size; ++i) {
      const Scores& s = active_.scores[i];
      if (!s.before) continue;
      for (int64_t e = 0; e < active_.size_of(i); e += kBlock) {
        masked += ones(valid_word(s.n, e) & ~s.before[e / kBlock]);
      }
    }
    return masked;
  }

  void note_nan(const Scores& s) { __atomic_store_n(nan_, s.index, __ATOMIC_RELAXED); }

  void find_nan() {
    parallel_parts(parallel_for_, active_, [&](int64_t i, int64_t first, int64_t last) {
      const Scores& s = active_.scores[i];
      with_type(s.dtype, [&]<class T>(T*) {
        for (int64_t e = first; e < last; e += kBlock) {
          if (holds_nan(keys_of<T>(s, e))) note_nan(s);
        }
      });
    });
  }

  // Starts the search in a window that a sample of all elements suggests.
  void guess(int64_t all, int64_t candidates) {
    uint32_t sample[kSample];
    int64_t size = 0, next = 0, stride = (all / kSample + 1) * kSampledNeighbours;
    for (int64_t i = 0; i < active_.size; ++i) {
      const Scores& s = active_.scores[i];
      for (; next < active_.size_of(i) && size + kSampledNeighbours <= kSample; next += stride) {
        int64_t e = next / kBlock * kBlock;
        uint64_t wanted = pool_.candidates(s, e) & ~(~0ull << kSampledNeighbours);
        with_type(s.dtype, [&]<class T>(T*) {
          Keys keys = keys_of<T>(s, e);
          for (; wanted; wanted &= wanted - 1) {
            int64_t j = __builtin_ctzll(wanted);
            sample[size++] = keys.at[j / kWidth][j % kWidth];
          }
        });
      }
      next -= next < active_.size_of(i) ? 0 : active_.size_of(i);
    }
    if (size < kBlock) return;
    search_.window = guessed_window(sample, size, search_.below, candidates);
  }

  // One pass over all candidates; how many the bucket of the threshold holds, 0 where it lies
  // outside the window.
  template <bool kFirst>
  int64_t narrow() {
    int64_t before = 0, total[math::kBuckets] = {};
    Search known = search_;
    Pool pool = pool_;
    parallel_for_pieces([&](auto each) {
      Counts counts;
      each([&](int64_t i, int64_t first, int64_t last) {
        const Scores& s = active_.scores[i];
        with_type(s.dtype, [&]<class T>(T*) {
          for (int64_t e = first; e < last; e += kBlock) {
            uint64_t candidates = pool.candidates(s, e);
            if (!kFirst && !candidates) continue;
            Keys keys = keys_of<T>(s, e);
            if (kFirst && holds_nan(keys)) note_nan(s);
            count<kFirst>(keys, candidates, known.window, &counts);
          }
        });
      });
      __atomic_fetch_add(&before, counts.before, __ATOMIC_RELAXED);
      for (int64_t b = 0; b < math::kBuckets; ++b) {
        if (int64_t sum = counts.of(b)) __atomic_fetch_add(total + b, sum, __ATOMIC_RELAXED);
      }
    });
    return take_bucket(before, [&](int32_t bucket) { return total[bucket]; }, &search_);
  }

  // f(each) on every thread, with each(g) calling g(i, first, last) for the thread's pieces, which
  // hold fewer than 2^31 elements.
  template <class F>
  void parallel_for_pieces(F f) {
    int64_t parts = 0;
    auto size_of = [&](int64_t i) { return active_.size_of(i); };
    for (int64_t i = 0; i < active_.size; ++i) parts += select_parts(size_of(i));
    constexpr int64_t kMost = int64_t{1} << 18;
    parallel(parallel_for_, parts, kGrain / kSelectPart, [&](int64_t begin, int64_t end) {
      for (int64_t from = begin; from < end; from += kMost) {
        f([&](auto g) {
          for_each_piece<kSelectPart>(active_.size, size_of, from, lesser(from + kMost, end), g);
        });
      }
    });
  }

  int64_t* ties_of(int64_t i) const {
    int64_t* ties = ties_;
    for (int64_t j = 0; j < i; ++j) ties += select_parts(active_.scores[j].n);
    return ties;
  }

  void write(const Search* search) {
    parallel_parts(parallel_for_, active_, [&](int64_t i, int64_t first, int64_t last) {
      const Scores& s = active_.scores[i];
      with_type(s.dtype,
                [&]<class T>(T*) { write_piece<T>(s, pool_, search, first, last, ties_of(i)); });
    });
  }

  // The mask, where few candidates share the bucket of 1 << shift keys that the search has come to:
  // they are set apart, and sorted.
  void write_but_few(int32_t shift) {
    Few few[kFew];
    int64_t count = 0;
    uint32_t low = search_.window.low;
    parallel_parts(parallel_for_, active_, [&](int64_t i, int64_t first, int64_t last) {
      const Scores& s = active_.scores[i];
      with_type(s.dtype, [&]<class T>(T*) {
        for (int64_t e = first; e < last; e += kBlock) {
          uint64_t candidates = pool_.candidates(s, e), pruned = pool_.pruned(s, e);
          if (candidates) {
            Keys keys = keys_of<T>(s, e);
            VecUint from = splat_key(low), width = splat_key(1u << shift);
            pruned |=
                bits_where(keys, [&](VecUint key) { return less_bits(key, from); }) & candidates;
            uint64_t open = candidates & bits_where(keys, [&](VecUint key) {
                              return less_bits(key - from, width);
                            });
            for (; open; open &= open - 1) {
              int64_t j = __builtin_ctzll(open);
              few[__atomic_fetch_add(&count, 1, __ATOMIC_RELAXED)] = {
                  keys.at[j / kWidth][j % kWidth], i, e + j};
            }
          }
          s.mask[e / kBlock] = valid_word(s.n, e) & ~pruned;
        }
      });
    });
    for (int64_t k = 0; k < search_.below; ++k) {  // they come in any order
      int64_t next = k;
      for (int64_t j = k + 1; j < count; ++j) next = few[j].before(few[next]) ? j : next;
      Few chosen = few[next];
      few[next] = few[k];
      const Scores& s = active_.scores[chosen.tensor];
      s.mask[chosen.place / kBlock] &= ~(1ull << (chosen.place % kBlock));
    }
  }

  // The first ones of the ties are pruned: each part learns how many of its own.
  void share_ties() {
    int64_t left = search_.below;
    int64_t* ties = ties_;
    for (int64_t i = 0; i < active_.size; ++i) {
      int64_t parts = select_parts(active_.scores[i].n);
      for (int64_t p = 0; p < parts && !active_.settled[i]; ++p) {
        ties[p] = lesser(ties[p], left);
        left -= ties[p];
      }
      ties += parts;
    }
    parallel_parts(parallel_for_, active_, [&](int64_t i, int64_t first, int64_t last) {
      const Scores& s = active_.scores[i];
      const int64_t* counts = ties_of(i);
      with_type(s.dtype, [&]<class T>(T*) {
        for (int64_t p = first / kSelectPart; p * kSelectPart < last; ++p) {
          if (counts[p] > 0) prune_ties<T>(s, pool_, search_.window.low, p, counts[p]);
        }
      });
    });
  }

  Active active_;
  int64_t *ties_, *nan_;
  ParallelFor parallel_for_;
  Pool pool_ = {};
  Search search_ = {};
};

int64_t kept_by(const Scores& s) {
  int64_t kept = 0;
  for (int64_t word = 0; word < (s.n + kBlock - 1) / kBlock; ++word) kept += ones(s.mask[word]);
  return kept;
}

// A tensor that would keep too little is settled by itself, and the others make up for it; then the
// threshold only rises, so that it would be settled the same in the end.
void select_group(const Scores* scores, int64_t size, const SelectMask& args,
                  ParallelFor parallel_for) {
  uint8_t* settled = args.settled;
  int64_t left = scores[0].pruned;
  for (int64_t i = 0; i < size; ++i) settled[i] = 0;
  for (bool again = true; again;) {
    again = false;
    Selection({scores, settled, size}, args.ties, args.nan, parallel_for).run(left);
    for (int64_t i = 0; i < size; ++i) {
      const Scores& s = scores[i];
      if (settled[i] || kept_by(s) >= s.least) continue;
      uint8_t alone = 0;
      Selection({&s, &alone, 1}, args.ties, args.nan, parallel_for).run(s.n - s.least);
      settled[i] = 1;
      left -= s.n - s.least;
      again = true;
    }
  }
}

}  // namespace

// Scores in once, or up to three times, for the threshold, and once for the mask.
template <>
void select_mask(const SelectMask& args, const OnCpu<BITPARE_ISA>& cpu) {
  for (int64_t begin = 0, end = 0; begin < args.size; begin = end) {
    while (end < args.size && args.scores[end].group == args.scores[begin].group) ++end;
    select_group(args.scores + begin, end - begin, args, cpu.parallel_for);
  }
}

template <>
void select_n_of_m(const SelectNOfM& args, const OnCpu<BITPARE_ISA>& cpu) {
  int64_t n = args.layout.n();
  with_type(args.dtype, [&]<class T>(T*) {
    auto read = [x = static_cast<const T*>(args.x)](int64_t i) { return math::widen(x[i]); };
    parallel_blocks(cpu.parallel_for, n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += kBlock) {
        uint64_t word = 0;
        for (int64_t j = i; j < lesser(i + kBlock, end); ++j) {
          bool stays = math::stays_in_group(args.layout, args.keep, j, read, args.before);
          word |= static_cast<uint64_t>(stays) << (j - i);
        }
        args.mask[i / kBlock] = word;
      }
    });
  });
}

}  // namespace bitpare
