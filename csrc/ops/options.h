// The arguments of an op as one struct, whose members stand in the order of the op's schema (those
// of a nested struct count one by one), and whose fields() ties them in that order:
//   struct Options {
//     const Tensor& x;
//     Granularity granularity;
//     auto fields() const { return std::tie(x, granularity.axis, granularity.group); }
//   };
// A function of such a struct can be registered and looked up like one of all those arguments.
#pragma once
#include <tuple>

#include "ops/device.h"

namespace bitpare::ops {

template <class T>
concept OpOptions = requires(const T& options) { options.fields(); };

// Tensors are passed by reference, all else by value.
template <class Field, class T = std::remove_cvref_t<Field>>
using Passed =
    std::conditional_t<std::is_same_v<T, Tensor> || std::is_same_v<T, OptionalTensor>, const T&, T>;

template <class Function>
struct SignatureOf {
  using type = Function;
};
template <class Result, OpOptions Options>
struct SignatureOf<Result(const Options&)> {
  template <class... Fields>
  static auto of(const std::tuple<Fields...>&) -> Result (*)(Passed<Fields>...);
  using type = std::remove_pointer_t<decltype(of(std::declval<const Options&>().fields()))>;
};

// The signature by which the dispatcher calls a function.
template <class Function>
using Signature = typename SignatureOf<Function>::type;

// Calls a function by its signature.
template <class Result, class... Arguments, class... Given>
Result call_by_signature(Result (*function)(Arguments...), Given&&... given) {
  return function(std::forward<Given>(given)...);
}
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmissing-braces"  // the members of nested structs come one by one
template <class Result, OpOptions Options, class... Given>
Result call_by_signature(Result (*function)(const Options&), Given&&... given) {
  return function(Options{std::forward<Given>(given)...});
}
#pragma GCC diagnostic pop

// Returns the values of tied fields, which autograd saves as one tuple.
template <class... Fields>
std::tuple<std::remove_cvref_t<Fields>...> values_of(const std::tuple<Fields...>& fields) {
  return fields;
}

}  // namespace bitpare::ops
