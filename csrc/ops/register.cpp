#include "ops/register.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace bitpare::ops {
namespace {

c10::OperatorHandle op_of(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow((std::string("bitpare::") + name).c_str(),
                                                        "");
}

bool is_lazy(const Tensor& x) {
  return x.defined() && (x.is_neg() || x.is_conj() || x._is_zerotensor());
}

Tensor resolved(const c10::FunctionSchema& schema, const c10::Argument& argument, const Tensor& x) {
  const c10::AliasInfo* alias = argument.alias_info();
  if (!is_lazy(x) || (alias && !alias->isWrite())) return x;  // a view of it is as lazy
  TORCH_CHECK(!alias, schema.name().substr(schema.name().find("::") + 2), ": ", argument.name(),
              " must hold its values, since it is written; got a ",
              x._is_zerotensor() ? "zero tensor" : "lazily negated or conjugated tensor", ": pass ",
              argument.name(), ".clone()");
  return with_values(x);
}

void resolve(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& arguments = schema.arguments();
  size_t first = stack->size() - arguments.size();
  for (size_t i = 0; i < arguments.size(); ++i) {
    c10::IValue& value = (*stack)[first + i];
    if (value.isTensor()) {
      value = resolved(schema, arguments[i], value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<Tensor> tensors;
      for (const Tensor& x : value.toTensorVector()) {
        tensors.push_back(resolved(schema, arguments[i], x));
      }
      value = tensors;
    }
  }
  // Below all of the lazy keys, of which Conjugate is the lowest.
  op.redispatchBoxed(
      keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::Conjugate),
      stack);
}

}  // namespace

Tensor with_values(const Tensor& x) {
  if (!is_lazy(x)) return x;
  if (x._is_zerotensor()) return at::zeros(x.sizes(), x.options());
  return x.clone();
}

void wrong_device(const char* op, size_t argument, size_t first, const c10::Device& expected,
                  const c10::Device& got) {
  const auto& arguments = op_of(op).schema().arguments();
  const std::string& name = arguments[argument].name();
  TORCH_CHECK(argument != first, op, ": ", name, " must be on one device, got ", expected, " and ",
              got);
  TORCH_CHECK(false, op, ": ", name, " must be on ", expected, " like ", arguments[first].name(),
              ", got ", got);
}

void resolve_lazy_arguments(torch::Library& m, const char* op) {
  for (auto key :
       {c10::DispatchKey::Conjugate, c10::DispatchKey::Negative, c10::DispatchKey::ZeroTensor}) {
    m.impl(op, torch::dispatch(key, torch::CppFunction::makeFromBoxedFunction<&resolve>()));
  }
}

}  // namespace bitpare::ops
