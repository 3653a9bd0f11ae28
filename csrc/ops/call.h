// Calling a registered op by name from C++, looked up once.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/arguments.h"
#include "ops/register.h"

namespace bitpare::ops {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Function: any implementation of the op, or its signature.
template <class Function>
c10::TypedOperatorHandle<Signature<Function>> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature<Function>>();
}

template <class Op, OpOptions Options>
auto call(const Op& op, const Options& options) {
  return std::apply([&](const auto&... fields) { return op.call(fields...); }, options.fields());
}

// For the body of a backward pass: unless a second derivative is asked for, the op it calls need
// not pass through autograd, which costs a microsecond. Comes after get_saved_variables(), which
// may run a forward pass again (activation checkpointing).
class BelowAutogradUnlessRecording {
 public:
  BelowAutogradUnlessRecording() {
    if (!at::GradMode::is_enabled()) below_.emplace();
  }

 private:
  std::optional<at::AutoDispatchBelowADInplaceOrView> below_;
};

// A saved tensor, or none if none was saved.
inline OptionalTensor if_defined(const Tensor& x) {
  return x.defined() ? OptionalTensor(x) : std::nullopt;
}

}  // namespace bitpare::ops
