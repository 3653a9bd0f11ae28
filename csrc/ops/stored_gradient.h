// Gradients that the forward pass computes and the backward pass returns.
#pragma once
#include <ATen/TensorSubclassLikeUtils.h>

#include "ops/call.h"

namespace bitpare::ops {

// Half-precision gradients can underflow before the loss scale is applied, so they are computed in
// the backward pass.
inline bool stores_gradient(const Tensor& x) { return x.scalar_type() == at::kFloat; }

// Returns the gradient that forward() saved, times dy (one number, or one for each row), in its own
// memory; dy is mostly 1, which needs no work. The result is undefined if the gradient was already
// taken, or if a graph of the backward pass is recorded.
inline Tensor take_stored_gradient(AutogradContext* context, const Tensor& dy) {
  auto& saved = context->saved_data;
  if (at::GradMode::is_enabled() || !saved.count("gradient")) return Tensor();
  Tensor gradient = saved["gradient"].toTensor();
  at::AutoDispatchBelowADInplaceOrView below;
  Tensor factor = dy.dim() == 0 ? dy : dy.unsqueeze(-1);
  if (at::isTensorSubclassLike(gradient) || at::isTensorSubclassLike(dy)) return gradient * factor;
  saved.erase("gradient");
  if (dy.is_cpu() && dy.dim() == 0 && dy.item<float>() == 1.0f) return gradient;
  return gradient.mul_(factor);
}

}  // namespace bitpare::ops
