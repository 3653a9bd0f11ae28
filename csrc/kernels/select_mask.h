// Masks that prune a given number of elements: see math/select_mask.h for the order.
#pragma once
#include "kernels/backend.h"
#include "math/select_mask.h"

namespace bitpare {

// One tensor of scores; those of one group are selected together.
//   x: [n] scores.
//   before: (n + 63) / 64 words, the mask in force; null where all is kept.
//   mask: as many words, out.
//   pruned: how many of the whole group; the same for each of its tensors.
//   least: how many of this tensor stay whatever their score; 0 ... n.
//   index: among all tensors.
//   first_part: of the parts of all tensors, in order.
//   first_block: set by the kernel's launch (CUDA).
struct Scores {
  const void* x;
  const uint64_t* before;
  uint64_t* mask;
  int64_t n, pruned, least;
  DType dtype;
  int32_t group, index;
  int32_t first_block;
  int64_t first_part;
};

// The state of a group of the search on a GPU.
struct SelectGroup {
  math::Search search;
  int64_t masked;    // how many may be pruned and are masked already
  bool from_masked;  // whether only those are pruned; else all of them and others
};

// scores: in groups 0, 1, ...; the pruned of each is at most the sum of n - least over its tensors.
//   CPU:  ties: [parts of kSelectPart elements of all tensors]; settled: [size];
//         nan: where a tensor of scores holds one, its index is written.
//   CUDA: ties: likewise; groups: [size]; buckets: [size, kBuckets], zeros.
struct SelectMask {
  const Scores* scores;
  int64_t size;
  int64_t* ties;
  uint8_t* settled;
  int64_t* nan;
  SelectGroup* groups;
  int64_t* buckets;
};

constexpr int64_t kSelectPart = 2048;

inline int64_t select_parts(int64_t n) { return (n + kSelectPart - 1) / kSelectPart; }

template <class Isa>
void select_mask(const SelectMask& args, const OnCpu<Isa>& cpu);
void select_mask(const SelectMask& args, const OnCuda& cuda);

// Keeps the `keep` best of each group of `members` neighbours.
struct SelectNOfM {
  const void* x;
  const uint64_t* before;  // null: all is kept
  uint64_t* mask;
  DType dtype;
  GroupLayout layout;
  int64_t keep;
};

template <class Isa>
void select_n_of_m(const SelectNOfM& args, const OnCpu<Isa>& cpu);
void select_n_of_m(const SelectNOfM& args, const OnCuda& cuda);

}  // namespace bitpare
