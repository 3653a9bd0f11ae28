// Checks of packed masks: see math/mask.h.
#pragma once
#include "math/mask.h"
#include "ops/call.h"

namespace bitpare::ops {

inline c10::SymInt mask_words(const c10::SymInt& n) { return (n + 63) / 64; }

inline void check_mask(const char* op, const Tensor& mask, const c10::SymInt& n) {
  TORCH_CHECK(mask.scalar_type() == at::kLong && mask.sym_numel() == mask_words(n), op,
              ": mask must be an int64 tensor of ", mask_words(n), " words for ", n,
              " elements, as pack_mask gives, got ", mask.sym_numel(), " of ", mask.scalar_type());
}

// hard: value and gradient are masked; ste: the gradient passes to all of x.
enum class MaskMode { hard, ste };

inline MaskMode parse_mask_mode(const char* op, c10::string_view mode) {
  return static_cast<MaskMode>(parse_name(op, "mode", mode, {"hard", "ste"}));
}

// How x lies in memory once it is dense in `format`.
inline MaskLayout mask_layout(const Tensor& x, at::MemoryFormat format) {
  if (format == at::MemoryFormat::Contiguous || x.dim() < 3) return {1, 1, x.numel()};
  int64_t rows = x.size(0), channels = x.size(1);
  int64_t inner = rows * channels == 0 ? 0 : x.numel() / (rows * channels);
  return {rows, channels, inner};
}

}  // namespace bitpare::ops
