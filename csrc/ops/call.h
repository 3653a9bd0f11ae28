// Calling a registered op by name from C++, looked up once, and registering one.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/arguments.h"

namespace bitpare::ops {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// What every op of this library declares.
inline const std::vector<at::Tag>& tags() {
  static const std::vector<at::Tag> all = {at::Tag::pt2_compliant_tag};
  return all;
}

}  // namespace bitpare::ops
