// A CUDA kernel in a test, run on the CPU.
#pragma once
#include "backends.h"
#include "cuda_on_host.h"

namespace bitpare {

// Calls f(OnCuda, name), with the threads of a block in three orders.
template <class F>
void on_cuda(F f) {
  using cuda_on_host::Order;
  for (Order order : {Order::forward, Order::reverse, Order::random}) {
    cuda_on_host::block().order = order;
    f(OnCuda{nullptr}, "order " + std::to_string(static_cast<int>(order)) + " ");
  }
}

}  // namespace bitpare
