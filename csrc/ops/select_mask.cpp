#include "kernels/select_mask.h"

#include <charconv>
#include <cmath>

#include "ops/mask.h"

namespace bitpare::ops {
namespace {

using at::TensorList;

constexpr const char* kOp = "select_mask";

Tensor new_mask(const Tensor& x) {
  return at::empty_symint({mask_words(x.sym_numel())},
                          x.options().dtype(at::kLong).memory_format(std::nullopt));
}

// How many of n are pruned: the ratio of n, rounded down except for float error.
int64_t pruned_of(double sparsity, int64_t n) {
  return static_cast<int64_t>(std::floor(sparsity * static_cast<double>(n) + 1e-6));
}

// Returns entry i, or the only entry.
template <class T>
T value_of(at::ArrayRef<T> values, size_t i) {
  return values[values.size() == 1 ? 0 : i];
}

// Checks what the public op and `_select_mask` share.
void check_scores(TensorList scores, at::ArrayRef<double> sparsity, bool together,
                  at::IntArrayRef min_keep, size_t masks) {
  size_t size = scores.size();
  TORCH_CHECK(sparsity.size() == 1 || (!together && sparsity.size() == size), kOp,
              ": sparsity must be one number", together ? "" : " or one for each of the scores",
              ", got ", sparsity.size());
  TORCH_CHECK(min_keep.size() == 1 || min_keep.size() == size, kOp,
              ": min_keep must be one number or one for each of the ", size, " scores, got ",
              min_keep.size());
  TORCH_CHECK(masks == size, kOp, ": previous must hold ", size, " masks like scores, got ", masks);
  for (double s : sparsity) {
    TORCH_CHECK(s >= 0 && s < 1, kOp, ": sparsity must be in [0, 1), got ", s);
  }
  for (int64_t least : min_keep) {
    TORCH_CHECK(least >= 0, kOp, ": min_keep must not be negative, got ", least);
  }
}

void check_select(TensorList scores, at::ArrayRef<double> sparsity, bool together,
                  at::IntArrayRef min_keep, TensorList previous) {
  check_scores(scores, sparsity, together, min_keep,
               previous.empty() ? scores.size() : previous.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    check_input(kOp, scores[i]);
    if (previous.empty()) continue;
    check_mask(kOp, previous[i], scores[i].sym_numel());
  }
}

template <class Device>
std::vector<Tensor> select(TensorList scores, at::ArrayRef<double> sparsity, bool together,
                           at::IntArrayRef min_keep, TensorList previous) {
  check_select(scores, sparsity, together, min_keep, previous);
  std::vector<Tensor> sources, before, masks;
  std::vector<Scores> items;
  int64_t parts = 0, all = 0, most = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const Tensor& x = scores[i];
    Device::require(kOp, x);
    sources.push_back(x.contiguous());
    if (!previous.empty()) before.push_back(previous[i].contiguous());
    masks.push_back(new_mask(x));
    Scores s = {};
    s.x = sources[i].const_data_ptr();
    if (!previous.empty()) s.before = static_cast<const uint64_t*>(before[i].const_data_ptr());
    s.mask = static_cast<uint64_t*>(masks[i].data_ptr());
    s.n = x.numel();
    s.least = std::min(value_of(min_keep, i), s.n);
    s.pruned = std::min(pruned_of(value_of(sparsity, i), s.n), s.n - s.least);
    s.dtype = dtype_of(kOp, x);
    s.index = static_cast<int32_t>(i);
    s.group = together ? 0 : s.index;
    s.first_part = parts;
    parts += select_parts(s.n);
    all += s.n;
    most += s.n - s.least;
    items.push_back(s);
  }
  if (items.empty()) return masks;
  for (Scores& s : items) {
    if (together) s.pruned = std::min(pruned_of(sparsity[0], all), most);
  }
  auto options = masks[0].options();
  int64_t nan = -1, size = static_cast<int64_t>(items.size());
  Tensor ties = at::empty({std::max<int64_t>(parts, 1)}, options), settled, groups, buckets;
  SelectMask args = {
      .scores = items.data(),
      .size = size,
      .ties = ties.data_ptr<int64_t>(),
      .settled = nullptr,
      .nan = &nan,
      .groups = nullptr,
      .buckets = nullptr,
  };
  if (Device::kSeesValues) {
    settled = at::empty({size}, options.dtype(at::kByte));
    args.settled = settled.data_ptr<uint8_t>();
  } else {
    groups =
        at::empty({size * static_cast<int64_t>(sizeof(SelectGroup))}, options.dtype(at::kByte));
    buckets = at::zeros({size, math::kBuckets}, options);
    args.groups = static_cast<SelectGroup*>(groups.data_ptr());
    args.buckets = buckets.data_ptr<int64_t>();
  }
  Device::run(scores[0], [&](const auto& where) { bitpare::select_mask(args, where); });
  TORCH_CHECK(nan < 0, kOp, ": scores[", nan, "] holds NaN");
  return masks;
}

std::vector<Tensor> select_meta(TensorList scores, at::ArrayRef<double> sparsity, bool together,
                                at::IntArrayRef min_keep, TensorList previous) {
  check_select(scores, sparsity, together, min_keep, previous);
  std::vector<Tensor> masks;
  for (const Tensor& x : scores) masks.push_back(new_mask(x));
  return masks;
}

void check_groups(const Tensor& scores, int64_t keep, int64_t members,
                  const OptionalTensor& previous) {
  check_input(kOp, scores);
  TORCH_CHECK(members >= 1 && keep >= 0 && keep <= members, kOp, ": keep must be in [0, members], ",
              "got ", keep, " of ", members);
  TORCH_CHECK(scores.dim() >= 2 && scores.sym_size(1) % members == 0, kOp, ": dimension 1 of ",
              "scores must be a multiple of ", members, ", got ", scores.sym_sizes());
  if (previous) check_mask(kOp, *previous, scores.sym_numel());
}

template <class Device>
Tensor select_in_groups(const Tensor& scores, int64_t keep, int64_t members,
                        const OptionalTensor& previous) {
  Device::require(kOp, scores);
  check_groups(scores, keep, members, previous);
  Tensor source = scores.contiguous(), mask = new_mask(scores);
  Array<uint64_t> before(previous);
  if (scores.numel() == 0) return mask;
  int64_t outer = scores.size(0), channels = scores.size(1);
  int64_t inner = scores.numel() / (outer * channels);
  SelectNOfM args = {
      .x = source.const_data_ptr(),
      .before = before.data(),
      .mask = static_cast<uint64_t*>(mask.data_ptr()),
      .dtype = dtype_of(kOp, scores),
      .layout = {.slabs = outer * channels / members, .members = members, .inner = inner},
      .keep = keep,
  };
  Device::run(scores, [&](const auto& where) { bitpare::select_n_of_m(args, where); });
  if constexpr (Device::kSeesValues) {
    TORCH_CHECK(!source.isnan().any().item<bool>(), kOp, ": scores hold NaN");
  }
  return mask;
}

Tensor select_in_groups_meta(const Tensor& scores, int64_t keep, int64_t members,
                             const OptionalTensor& previous) {
  check_groups(scores, keep, members, previous);
  return new_mask(scores);
}

// The elements that are pruned together.
struct Pattern {
  enum class Kind { element, n_of_m, block, filter, channel } kind;
  int64_t first = 1, second = 1;  // N and M, or rows and columns of a block
};

// Parses two numbers with the character `between` between them.
bool parse_pair(const std::string& text, char between, Pattern* pattern) {
  const char* end = text.data() + text.size();
  auto [middle, wrong] = std::from_chars(text.data(), end, pattern->first);
  if (wrong != std::errc{} || middle == end || *middle != between) return false;
  auto [last, wrong_too] = std::from_chars(middle + 1, end, pattern->second);
  return wrong_too == std::errc{} && last == end && pattern->first > 0 && pattern->second > 0;
}

Pattern parse_pattern(c10::string_view name) {
  std::string text(name);
  Pattern p = {Pattern::Kind::element};
  if (text == "element") return p;
  if (text == "filter") return {Pattern::Kind::filter};
  if (text == "channel") return {Pattern::Kind::channel};
  p.kind = Pattern::Kind::block;
  if (text.starts_with("block") && parse_pair(text.substr(5), 'x', &p)) return p;
  p.kind = Pattern::Kind::n_of_m;
  if (parse_pair(text, ':', &p) && p.first <= p.second) return p;
  TORCH_CHECK(false, kOp,
              ": pattern must be 'element', 'N:M' as '2:4', 'blockRxC' as 'block4x1', 'filter' or "
              "'channel', got '",
              name, "'");
}

void check_fits(const Pattern& p, size_t i, const Tensor& x) {
  if (p.kind == Pattern::Kind::element) return;
  int64_t dims = p.kind == Pattern::Kind::filter ? 1 : 2;
  TORCH_CHECK(x.dim() >= dims, kOp, ": scores[", i, "] must have ", dims,
              " dimensions or more for this pattern, got ", x.sym_sizes());
  if (p.kind == Pattern::Kind::n_of_m) {
    TORCH_CHECK(x.sym_size(1) % p.second == 0, kOp, ": pattern '", p.first, ":", p.second,
                "' needs dimension 1 of scores[", i, "] to be a multiple of ", p.second, ", got ",
                x.sym_sizes());
  }
  if (p.kind == Pattern::Kind::block) {
    TORCH_CHECK(x.size(0) % p.first == 0 && x.sym_size(1) % p.second == 0, kOp, ": pattern 'block",
                p.first, "x", p.second, "' needs dimensions 0 and 1 of scores[", i,
                "] to be multiples of ", p.first, " and ", p.second, ", got ", x.sym_sizes());
  }
}

// Returns x's shape as [rows, R, columns, C, inner]; elements with the same first, third and last
// index are one unit.
c10::SymDimVector blocked_shape(const Pattern& p, const Tensor& x) {
  c10::SymInt rows = x.sym_size(0), columns = x.dim() > 1 ? x.sym_size(1) : c10::SymInt(1),
              inner = 1;
  for (int64_t d = 2; d < x.dim(); ++d) inner *= x.sym_size(d);
  if (p.kind == Pattern::Kind::filter) return {rows, 1, 1, columns * inner, 1};
  if (p.kind == Pattern::Kind::channel) return {1, rows, columns, inner, 1};
  return {rows / p.first, p.first, columns / p.second, p.second, inner};
}

Tensor in_blocks(const Pattern& p, const Tensor& x) {
  return x.reshape_symint(blocked_shape(p, x));
}

// Means are computed in float64, so that the order of the sum does not matter.
Tensor unit_scores(const Pattern& p, const Tensor& x) {
  return in_blocks(p, x).to(at::kDouble).mean({1, 3}).to(at::kFloat);
}

Tensor unit_mask(const Pattern& p, const Tensor& x, const Tensor& mask) {
  static auto unpack = find_op<Tensor(const Tensor&, c10::SymIntArrayRef)>("bitpare::unpack_mask");
  static auto pack = find_op<Tensor(const Tensor&)>("bitpare::pack_mask");
  return pack.call(in_blocks(p, unpack.call(mask, x.sym_sizes())).any(3).any(1));
}

Tensor element_mask(const Pattern& p, const Tensor& x, const Tensor& units) {
  static auto unpack = find_op<Tensor(const Tensor&, c10::SymIntArrayRef)>("bitpare::unpack_mask");
  static auto pack = find_op<Tensor(const Tensor&)>("bitpare::pack_mask");
  auto shape = blocked_shape(p, x);
  Tensor kept = unpack.call(units, c10::SymDimVector{shape[0], shape[2], shape[4]});
  return pack.call(kept.unsqueeze(2).unsqueeze(1).expand_symint(shape));
}

struct Arguments {
  TensorList scores;
  at::ArrayRef<double> sparsity;
  bool together;
  std::vector<Tensor> previous;
  at::IntArrayRef min_keep;
  Pattern pattern;
};

Arguments checked(TensorList scores, at::ArrayRef<double> sparsity, c10::string_view scope,
                  const std::optional<TensorList>& previous, at::IntArrayRef min_keep,
                  c10::string_view pattern) {
  bool together = parse_name(kOp, "scope", scope, {"global", "local"}) == 0;
  size_t size = scores.size();
  check_scores(scores, sparsity, together, min_keep, previous ? previous->size() : size);
  Pattern parsed = parse_pattern(pattern);
  for (size_t i = 0; i < size; ++i) {
    check_input(kOp, scores[i]);
    check_fits(parsed, i, scores[i]);
    if (previous) check_mask(kOp, (*previous)[i], scores[i].sym_numel());
  }
  std::vector<Tensor> before;
  if (previous) before = previous->vec();
  return {scores, sparsity, together, before, min_keep, parsed};
}

std::vector<Tensor> n_of_m(const Arguments& a) {
  static auto op = find_op<decltype(select_in_groups_meta)>("bitpare::_select_n_of_m");
  std::vector<Tensor> masks;
  for (size_t i = 0; i < a.scores.size(); ++i) {
    int64_t keep = value_of(a.sparsity, i) == 0 ? a.pattern.second : a.pattern.first;
    OptionalTensor before;
    if (!a.previous.empty()) before = a.previous[i];
    masks.push_back(op.call(a.scores[i], keep, a.pattern.second, before));
  }
  return masks;
}

std::vector<Tensor> elements(const Arguments& a) {
  static auto op = find_op<decltype(select_meta)>("bitpare::_select_mask");
  return op.call(a.scores, a.sparsity, a.together, a.min_keep, a.previous);
}

std::vector<Tensor> select_mask(TensorList scores, at::ArrayRef<double> sparsity,
                                c10::string_view scope, std::optional<TensorList> previous,
                                at::IntArrayRef min_keep, c10::string_view pattern) {
  at::AutoDispatchBelowADInplaceOrView below;
  Arguments a = checked(scores, sparsity, scope, previous, min_keep, pattern);
  if (scores.empty()) return {};
  if (a.pattern.kind == Pattern::Kind::n_of_m) return n_of_m(a);
  if (a.pattern.kind == Pattern::Kind::element) return elements(a);
  Arguments units = a;
  std::vector<Tensor> means, masks;
  for (size_t i = 0; i < scores.size(); ++i) {
    means.push_back(unit_scores(a.pattern, scores[i]));
    if (!a.previous.empty()) {
      units.previous[i] = unit_mask(a.pattern, scores[i], a.previous[i]);
    }
  }
  units.scores = means;
  auto kept = elements(units);
  for (size_t i = 0; i < scores.size(); ++i) {
    masks.push_back(element_mask(a.pattern, scores[i], kept[i]));
  }
  return masks;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bitpare, m) {
  m.def(
      "select_mask(Tensor[] scores, float[] sparsity, *, str scope='global', "
      "Tensor[]? previous=None, int[] min_keep=[1], str pattern='element') -> Tensor[]",
      tags());
  m.def(
      "_select_mask(Tensor[] scores, float[] sparsity, bool together, int[] min_keep, "
      "Tensor[] previous) -> Tensor[]",
      tags());
  m.def("_select_n_of_m(Tensor scores, int keep, int members, Tensor? previous) -> Tensor", tags());
  composite(m, "select_mask", select_mask);
  kernels(m, "_select_mask", select<Cpu>, select<Cuda>, select_meta);
  no_gradient(m, "_select_mask");
  kernels(m, "_select_n_of_m", select_in_groups<Cpu>, select_in_groups<Cuda>,
          select_in_groups_meta);
  no_gradient(m, "_select_n_of_m");
}

}  // namespace bitpare::ops
