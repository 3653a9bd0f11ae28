// Lets a gradient overwrite the incoming one, which moves fewer bytes through memory.
#pragma once
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/record_function.h>

#include "ops/call.h"

namespace bitpare::ops {

// Returns whether a tensor's values are those in its memory, which C++ may then read.
inline bool shows_memory(const Tensor& x) {
  return !at::isTensorSubclassLike(x) && !x.is_neg() && !x.is_conj() && !x._is_zerotensor() &&
         x.has_storage();
}

// Returns whether nobody else sees dy, a plain tensor in the wanted layout. A backward pass may
// then take its memory, as torch itself does before it adds gradients in place. Python, hooks,
// retained gradients and other consumers each hold a reference of their own; a graph to be
// differentiated again keeps dy later. On a GPU another stream may still read what nobody holds.
inline bool may_overwrite(const Tensor& dy, at::MemoryFormat format) {
  return !at::GradMode::is_enabled() && dy.is_cpu() && dy.use_count() == 1 && shows_memory(dy) &&
         dy.storage().use_count() == 1 && dy.is_contiguous(format);
}

}  // namespace bitpare::ops
