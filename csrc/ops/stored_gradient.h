// A gradient that the forward pass has found, handed on by the backward pass.
#pragma once
#include <ATen/TensorSubclassLikeUtils.h>

#include "ops/call.h"

namespace bitpare::ops {

// A gradient in fp16 or bf16 would lose what a later factor could save, so that of halves waits for
// the incoming gradient.
inline bool stores_gradient(const Tensor& x) { return x.scalar_type() == at::kFloat; }

// The gradient that forward() put into saved_data, times dy ([] or one for each row), in its own
// memory; nothing is to do where dy is 1, as it mostly is. The gradient is there once: undefined
// where it was handed on already, or is asked for with a graph of its own.
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
