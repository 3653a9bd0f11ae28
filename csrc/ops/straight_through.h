// The straight-through gradient, as an op and as the gradient of any op that saves one bit for each
// element.
#pragma once
#include <functional>

#include "ops/call.h"

namespace bitpare::ops {

// dx = inside ? dy : 0, in the given layout. inside: flat bits in the memory order of that layout.
Tensor straight_through(const Tensor& dy, const Tensor& inside, at::MemoryFormat format);

// The same in a backward pass; dx overwrites dy if dy is the only reference to it.
Tensor straight_through_or_over(const Tensor& dy, const Tensor& inside, at::MemoryFormat format);

// forward() -> (y, inside), run below autograd; y gets the straight-through gradient to x.
using MaskedForward = std::function<std::tuple<Tensor, Tensor>()>;
Tensor with_straight_through(const Tensor& x, at::MemoryFormat format,
                             const MaskedForward& forward);

}  // namespace bitpare::ops
