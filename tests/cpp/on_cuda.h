// Runs a kernel on every instruction set of this machine, and as a CUDA kernel on the CPU.
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

// Calls f(where, name) on every instruction set and on CUDA, unless that would take too many
// fibers.
template <class F>
void everywhere(bool and_cuda, F f) {
  on_every_cpu(f);
  if (and_cuda) on_cuda(f);
}

// Calls f(where, name) on every instruction set, and on CUDA.
template <class F>
void everywhere(F f) {
  everywhere(true, f);
}

}  // namespace bitpare
