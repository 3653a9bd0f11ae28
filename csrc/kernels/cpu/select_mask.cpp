#include "kernels/select_mask.h"

#include "kernels/cpu/pieces.h"
#include "kernels/cpu/select_keys.h"

namespace bitpare {
namespace {

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

// Writes the mask of a piece, which still keeps the ties, and how many ties each part has.
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

// A candidate whose bucket holds few others, which are sorted one by one.
struct Candidate {
  uint32_t key;
  int64_t tensor, place;

  bool before(const Candidate& other) const {
    if (key != other.key) return key < other.key;
    return tensor != other.tensor ? tensor < other.tensor : place < other.place;
  }
};
constexpr int64_t kMostSorted = 256;

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
    int64_t candidates_left = narrow<true>();
    if (candidates_left == 0) {  // the guess was wrong
      search_ = whole;
      shift = search_.window.shift;
      candidates_left = narrow<true>();
    }
    while (shift > 0 && candidates_left > kMostSorted) {
      shift = search_.window.shift;
      candidates_left = narrow<false>();
    }
    if (candidates_left <= kMostSorted) return write_and_sort(shift);
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

  // Makes one pass over all candidates. Returns how many are in the bucket of the threshold, or 0
  // if it lies outside the window.
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

  // Calls f(each) on every thread; each(g) calls g(i, first, last) for the thread's pieces, which
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

  // Writes the mask if few candidates are in the bucket of 1 << shift keys that the search has
  // reached: those are collected and sorted.
  void write_and_sort(int32_t shift) {
    Candidate sorted[kMostSorted];
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
              sorted[__atomic_fetch_add(&count, 1, __ATOMIC_RELAXED)] = {
                  keys.at[j / kWidth][j % kWidth], i, e + j};
            }
          }
          s.mask[e / kBlock] = valid_word(s.n, e) & ~pruned;
        }
      });
    });
    for (int64_t k = 0; k < search_.below; ++k) {  // they come in any order
      int64_t next = k;
      for (int64_t j = k + 1; j < count; ++j) next = sorted[j].before(sorted[next]) ? j : next;
      Candidate chosen = sorted[next];
      sorted[next] = sorted[k];
      const Scores& s = active_.scores[chosen.tensor];
      s.mask[chosen.place / kBlock] &= ~(1ull << (chosen.place % kBlock));
    }
  }

  // Prunes the first ties: tells each part how many of its own.
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

// A tensor that would keep too few elements is selected by itself, and the others make up for it.
// That only raises the threshold, so the tensor would still keep too few: its selection is final.
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

// Reads the scores one to three times to find the threshold, and once to write the mask.
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
