#include "kernels/select_mask.h"

#include "kernels/cpu/pieces.h"

namespace bitpare {
namespace {

using math::Digit;
using math::Search;

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

// The bits of the keys for which f, a comparison of vectors, is true.
template <class F>
BITPARE_INLINE uint64_t bits_where(const Keys& keys, F f) {
  uint64_t word = 0;
#pragma GCC unroll 16
  for (int64_t k = 0; k < kVectors; ++k) word |= true_bits((VecInt)f(keys.at[k])) << (k * kWidth);
  return word;
}

VecUint splat_key(uint32_t key) { return VecUint{} + key; }

template <class T>
bool holds_nan(const Scores& s, int64_t first, int64_t last) {
  uint64_t same = ~0ull >> (kBlock - kWidth);
  for (int64_t i = first; i < last; i += kWidth) {
    Vec x = scores_at(static_cast<const T*>(s.x), i, s.n);
    same &= equal_bits(x, x);
  }
  return same != ~0ull >> (kBlock - kWidth);
}

// Several counters for each bucket, since neighbours often share one.
constexpr int64_t kCopies = 4;

// Adds what the candidates of a piece have in the digit, where they share what is known.
template <class T>
void count_digit(const Scores& s, const Pool& pool, int32_t pass, const Search& search,
                 int64_t first, int64_t last, int32_t* counts) {
  Digit d = math::digit_of(pass);
  for (int64_t i = first; i < last; i += kBlock) {
    uint64_t wanted = pool.candidates(s, i);
    if (!wanted) continue;
    Keys keys = keys_of<T>(s, i);
    if (pass > 0) {
      wanted &= bits_where(keys, [&](VecUint key) { return math::shares_prefix(key, search, d); });
      if (!wanted) continue;
    }
    uint32_t bucket[kBlock];
#pragma GCC unroll 16
    for (int64_t k = 0; k < kVectors; ++k) {
      VecUint b = math::bucket_of(keys.at[k], d);
      __builtin_memcpy(bucket + k * kWidth, &b, sizeof b);
    }
    if (wanted == ~0ull) {
      for (int64_t j = 0; j < kBlock; ++j) ++counts[bucket[j] * kCopies + j % kCopies];
    } else {
      for (; wanted; wanted &= wanted - 1) {
        int64_t j = __builtin_ctzll(wanted);
        ++counts[bucket[j] * kCopies + j % kCopies];
      }
    }
  }
}

// The digit of the last one to be pruned, from how many candidates have each.
void take_digit(const int64_t* total, Digit d, Search* search) {
  int64_t bucket = 0;
  while (bucket < math::kBuckets - 1 && total[bucket] < search->below) {
    search->below -= total[bucket++];
  }
  search->prefix = search->prefix << d.bits | static_cast<uint32_t>(bucket);
}

// Bits that are pruned by their score, and those of the threshold itself.
struct Verdict {
  uint64_t below, equal;
};

BITPARE_INLINE Verdict verdict_of(const Keys& keys, uint32_t threshold, uint64_t candidates) {
  VecUint t = splat_key(threshold);
  return {bits_where(keys, [&](VecUint key) { return key < t; }) & candidates,
          bits_where(keys, [&](VecUint key) { return key == t; }) & candidates};
}

// The mask of a piece, ties still in it, and how many of those each part has.
template <class T>
void write_piece(const Scores& s, const Pool& pool, const Search* search, int64_t first,
                 int64_t last, int64_t* ties) {
  for (int64_t i = first; i < last; i += kBlock) {
    if ((i - first) % kSelectPart == 0) ties[i / kSelectPart] = 0;
    uint64_t candidates = pool.candidates(s, i), pruned = pool.pruned(s, i);
    if (search && candidates) {
      Verdict v = verdict_of(keys_of<T>(s, i), search->prefix, candidates);
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

class Selection {
 public:
  Selection(const Active& active, int64_t* ties, ParallelFor parallel_for)
      : active_(active), ties_(ties), parallel_for_(parallel_for) {}

  // Writes masks that prune the first `pruned` of all elements.
  void run(int64_t pruned) {
    int64_t masked = count_masked();
    pool_.from_masked = pruned <= masked;
    search_ = {0, pool_.from_masked ? pruned : pruned - masked};
    if (search_.below == 0) {
      write(nullptr);
      return;
    }
    for (int32_t pass = 0; pass < math::kDigits; ++pass) narrow(pass);
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

  void narrow(int32_t pass) {
    int64_t total[math::kBuckets] = {};
    Search known = search_;
    Pool pool = pool_;
    parallel_for_pieces([&](auto each) {
      int32_t counts[math::kBuckets * kCopies] = {};
      each([&](int64_t i, int64_t first, int64_t last) {
        const Scores& s = active_.scores[i];
        with_type(s.dtype,
                  [&]<class T>(T*) { count_digit<T>(s, pool, pass, known, first, last, counts); });
      });
      for (int64_t b = 0; b < math::kBuckets; ++b) {
        int64_t sum = 0;
        for (int64_t c = 0; c < kCopies; ++c) sum += counts[b * kCopies + c];
        if (sum) __atomic_fetch_add(total + b, sum, __ATOMIC_RELAXED);
      }
    });
    take_digit(total, math::digit_of(pass), &search_);
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

  // Of the ties, the first ones are pruned: each part learns how many of its own.
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
          if (counts[p] > 0) prune_ties<T>(s, pool_, search_.prefix, p, counts[p]);
        }
      });
    });
  }

  Active active_;
  int64_t* ties_;
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
void select_group(const Scores* scores, int64_t size, uint8_t* settled, int64_t* ties,
                  ParallelFor parallel_for) {
  int64_t left = scores[0].pruned;
  for (int64_t i = 0; i < size; ++i) settled[i] = 0;
  for (bool again = true; again;) {
    again = false;
    Selection({scores, settled, size}, ties, parallel_for).run(left);
    for (int64_t i = 0; i < size; ++i) {
      const Scores& s = scores[i];
      if (settled[i] || kept_by(s) >= s.least) continue;
      uint8_t alone = 0;
      Selection({&s, &alone, 1}, ties, parallel_for).run(s.n - s.least);
      settled[i] = 1;
      left -= s.n - s.least;
      again = true;
    }
  }
}

void find_nan(const SelectMask& args, ParallelFor parallel_for) {
  parallel_pieces<kSelectPart>(
      parallel_for, args.size, [&](int64_t i) { return args.scores[i].n; },
      [&](int64_t i, int64_t first, int64_t last) {
        const Scores& s = args.scores[i];
        with_type(s.dtype, [&]<class T>(T*) {
          if (holds_nan<T>(s, first, last)) __atomic_store_n(args.nan, i, __ATOMIC_RELAXED);
        });
      });
}

}  // namespace

// Scores in once for NaN, once for each digit of the threshold, and once for the mask.
template <>
void select_mask(const SelectMask& args, const OnCpu<BITPARE_ISA>& cpu) {
  find_nan(args, cpu.parallel_for);
  if (*args.nan >= 0) return;
  for (int64_t begin = 0, end = 0; begin < args.size; begin = end) {
    while (end < args.size && args.scores[end].group == args.scores[begin].group) ++end;
    select_group(args.scores + begin, end - begin, args.settled, args.ties, cpu.parallel_for);
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
