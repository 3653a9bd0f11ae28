// The ops from C++, with no Python: registration, autograd, errors.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include "bitpare.h"

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalInt = std::optional<int64_t>;

Tensor fake_quant(const Tensor& x, const Tensor& scale, OptionalInt axis = {}) {
  using Signature =
      Tensor(const Tensor&, const Tensor&, const OptionalTensor&, int64_t, int64_t, OptionalInt,
             OptionalInt, c10::string_view, c10::string_view, double, const OptionalTensor&);
  static auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("bitpare::fake_quant", "").typed<Signature>();
  return op.call(x, scale, std::nullopt, -8, 7, axis, std::nullopt, "nearest", "ste", 0.0,
                 std::nullopt);
}

TEST(Ops, Version) { EXPECT_NE(std::string(bitpare_version()), ""); }

TEST(Ops, ForwardAndBackward) {
  Tensor x = at::linspace(-3, 3, 100).set_requires_grad(true);
  Tensor y = fake_quant(x, at::full({}, 0.25f));
  Tensor expected = (x / 0.25).round().clamp(-8, 7) * 0.25;
  EXPECT_TRUE(at::equal(y, expected));
  torch::autograd::backward({y.sum()}, {});
  Tensor inside = ((x / 0.25).round() >= -8).logical_and((x / 0.25).round() <= 7);
  EXPECT_TRUE(at::equal(x.grad(), inside.to(at::kFloat)));
}

TEST(Ops, KeepsChannelsLast) {
  Tensor x = at::randn({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast);
  Tensor scale = at::rand({3}) + 0.1;
  Tensor y = fake_quant(x, scale, 1);
  EXPECT_TRUE(y.is_contiguous(at::MemoryFormat::ChannelsLast));
  EXPECT_TRUE(at::equal(y.contiguous(), fake_quant(x.contiguous(), scale, 1)));
}

void expect_error(const std::function<void()>& f, const std::string& message) {
  try {
    f();
    ADD_FAILURE() << "no error, expected: " << message;
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
  }
}

TEST(Ops, Errors) {
  Tensor x = at::randn({2, 3});
  expect_error([&] { fake_quant(x, at::ones({2}), 1); },
               "fake_quant: scale must have 3 elements (channels of x along axis 1), got 2");
  expect_error([&] { fake_quant(x, at::zeros({})); },
               "fake_quant: scale must be positive and finite, got 0 at index 0");
}

#ifndef BITPARE_WITH_CUDA
TEST(Ops, WithoutCudaSaysHowToRebuild) {
  auto op = c10::Dispatcher::singleton()
                .findSchemaOrThrow("bitpare::_straight_through", "")
                .typed<Tensor(const Tensor&, const Tensor&, at::MemoryFormat)>();
  Tensor dy = at::ones({3}), inside = at::zeros({1}, at::kLong);
  expect_error(
      [&] {
        op.redispatch(c10::DispatchKeySet(c10::DispatchKey::CUDA), dy, inside,
                      at::MemoryFormat::Contiguous);
      },
      "built without CUDA");
}
#endif

}  // namespace
