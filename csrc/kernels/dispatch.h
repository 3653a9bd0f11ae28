// Converts types and modes known at run time to template parameters.
#pragma once
#include "kernels/backend.h"
#include "math/activation.h"
#include "math/binarize.h"
#include "math/half.h"
#include "math/rounding.h"

namespace bitpare {
namespace {

// Calls f(T*{}) with the element type that dtype names.
template <class F>
void with_type(DType dtype, F f) {
  if (dtype == DType::float32) return f(static_cast<float*>(nullptr));
  if (dtype == DType::float16) return f(static_cast<Half*>(nullptr));
  f(static_cast<BFloat16*>(nullptr));
}

// Calls f.template operator()<kRounding>() for the rounding asked for.
template <class F>
void with_rounding(Rounding rounding, F f) {
  switch (rounding) {
    case Rounding::nearest:
      return f.template operator()<Rounding::nearest>();
    case Rounding::half_up:
      return f.template operator()<Rounding::half_up>();
    case Rounding::floor:
      return f.template operator()<Rounding::floor>();
    case Rounding::ceil:
      return f.template operator()<Rounding::ceil>();
    case Rounding::toward_zero:
      return f.template operator()<Rounding::toward_zero>();
    case Rounding::stochastic:
      return f.template operator()<Rounding::stochastic>();
  }
}

// Calls f(T*{}) with the integer type that `type` names.
template <class F>
void with_int_type(IntType type, F f) {
  if (type == IntType::int8) return f(static_cast<int8_t*>(nullptr));
  if (type == IntType::uint8) return f(static_cast<uint8_t*>(nullptr));
  if (type == IntType::int16) return f(static_cast<int16_t*>(nullptr));
  f(static_cast<int32_t*>(nullptr));
}

// Calls f.template operator()<kLevels>() for the levels asked for.
template <class F>
void with_levels(Levels levels, F f) {
  switch (levels) {
    case Levels::sign:
      return f.template operator()<Levels::sign>();
    case Levels::zero_one:
      return f.template operator()<Levels::zero_one>();
    case Levels::minus_one_zero:
      return f.template operator()<Levels::minus_one_zero>();
    case Levels::ternary:
      return f.template operator()<Levels::ternary>();
  }
}

// Calls f.template operator()<kActivation>() for the activation asked for.
template <class F>
void with_activation(Activation activation, F f) {
  switch (activation) {
    case Activation::none:
      return f.template operator()<Activation::none>();
    case Activation::relu:
      return f.template operator()<Activation::relu>();
    case Activation::relu6:
      return f.template operator()<Activation::relu6>();
    case Activation::hardswish:
      return f.template operator()<Activation::hardswish>();
    case Activation::hardsigmoid:
      return f.template operator()<Activation::hardsigmoid>();
  }
}

// The same for those whose derivative takes more than one bit.
template <class F>
void with_shaped_activation(Activation activation, F f) {
  if (activation == Activation::hardswish) {
    return f.template operator()<Activation::hardswish>();
  }
  f.template operator()<Activation::hardsigmoid>();
}

}  // namespace
}  // namespace bitpare
