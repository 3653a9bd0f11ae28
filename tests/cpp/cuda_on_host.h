// Runs CUDA kernels on the CPU, so that machines without a GPU test the same .cu files.
//
// Each thread of a block is a fiber, switched at barriers and warp operations only; blocks run one
// after another. A block's shared memory starts as 0xFF bytes, so that a read before a write shows,
// and threads run in forward, reverse and random order, so that a missing barrier shows.
// Covers what the kernels use: a grid along x, __syncthreads, shuffles and ballots of full warps,
// atomic additions and maxima, dp4a and byte_perm. Under AddressSanitizer the switches are
// announced to it.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__ static
#define __device__
#define __host__
#define __launch_bounds__(...)
#define BITPARE_SHARED(Type, name) \
  Type& name = *reinterpret_cast<Type*>(::bitpare::cuda_on_host::block().shared)

struct HostDim3 {
  unsigned x = 0, y = 0, z = 0;
};
inline HostDim3 threadIdx, blockIdx, blockDim, gridDim;

namespace bitpare::cuda_on_host {

enum class Order { forward, reverse, random };

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kSharedBytes = 48 << 10;
constexpr unsigned kWarpSize = 32;

// Switches between two stacks, telling AddressSanitizer.
struct Stack {
  ucontext_t context;
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
};

inline void switch_stacks(Stack& from, Stack& to, [[maybe_unused]] bool from_ends) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
  swapcontext(&from.context, &to.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

enum class State { ready, at_block_barrier, at_warp_barrier, done };

struct Thread {
  Stack stack;
  std::unique_ptr<char[]> memory;
  State state = State::done;
  uint64_t exchanged = 0;  // what a warp operation passes on
};

struct Block {
  alignas(128) char shared[kSharedBytes];
  std::vector<Thread> threads;
  Stack scheduler;
  unsigned current = 0;
  std::function<void()> body;
  Order order = Order::forward;
  std::mt19937 random{7};
};

inline Block& block() {
  static Block the_block;
  return the_block;
}

inline void wait(State state) {
  Block& b = block();
  Thread& me = b.threads[b.current];
  me.state = state;
  switch_stacks(me.stack, b.scheduler, state == State::done);
}

inline void thread_entry() {
#if defined(__SANITIZE_ADDRESS__)
  Stack& scheduler = block().scheduler;
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.size);
#endif
  block().body();
  wait(State::done);
}

inline void start(Thread& thread) {
  if (!thread.memory) thread.memory.reset(new char[kStackBytes]);
  thread.stack.bottom = thread.memory.get();
  thread.stack.size = kStackBytes;
  getcontext(&thread.stack.context);
  thread.stack.context.uc_stack.ss_sp = thread.memory.get();
  thread.stack.context.uc_stack.ss_size = kStackBytes;
  thread.stack.context.uc_link = nullptr;
  makecontext(&thread.stack.context, thread_entry, 0);
  thread.state = State::ready;
}

// Lets the threads of [first, last) continue if all that are not done wait at `barrier`.
inline bool release(unsigned first, unsigned last, State barrier) {
  std::vector<Thread>& threads = block().threads;
  bool waiting = false;
  for (unsigned i = first; i < last; ++i) {
    if (threads[i].state == barrier) waiting = true;
    if (threads[i].state != barrier && threads[i].state != State::done) return false;
  }
  for (unsigned i = first; i < last; ++i) {
    if (threads[i].state == barrier) threads[i].state = State::ready;
  }
  return waiting;
}

inline void run_block(unsigned count) {
  Block& b = block();
  std::memset(b.shared, 0xff, sizeof b.shared);
  b.threads.resize(std::max<size_t>(b.threads.size(), count));
  for (unsigned i = 0; i < count; ++i) start(b.threads[i]);
  std::vector<unsigned> turn(count);
  std::iota(turn.begin(), turn.end(), 0u);
  if (b.order == Order::reverse) std::reverse(turn.begin(), turn.end());
  for (;;) {
    if (b.order == Order::random) std::shuffle(turn.begin(), turn.end(), b.random);
    bool moved = false;
    for (unsigned i : turn) {
      if (b.threads[i].state != State::ready) continue;
      moved = true;
      b.current = i;
      threadIdx.x = i;
      switch_stacks(b.scheduler, b.threads[i].stack, false);
    }
    for (unsigned w = 0; w < count; w += kWarpSize) {
      moved |= release(w, std::min(count, w + kWarpSize), State::at_warp_barrier);
    }
    auto done = [](const Thread& t) { return t.state == State::done; };
    if (std::all_of(b.threads.begin(), b.threads.begin() + count, done)) return;
    if (!release(0, count, State::at_block_barrier) && !moved) {
      std::fprintf(stderr, "cuda_on_host: threads wait at different barriers\n");
      std::abort();
    }
  }
}

// Returns what each thread of the caller's warp passed, by lane; a lane that has returned passes
// nothing.
template <class T, class Read>
auto exchange(T value, Read read) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Block& b = block();
  unsigned me = b.current;
  b.threads[me].exchanged = 0;
  std::memcpy(&b.threads[me].exchanged, &value, sizeof value);
  wait(State::at_warp_barrier);
  auto result = read(me);
  wait(State::at_warp_barrier);
  return result;
}

}  // namespace bitpare::cuda_on_host

inline void __syncthreads() {
  bitpare::cuda_on_host::wait(bitpare::cuda_on_host::State::at_block_barrier);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  return bitpare::cuda_on_host::exchange(value, [lanes](unsigned me) {
    T other;
    std::memcpy(&other, &bitpare::cuda_on_host::block().threads[me ^ lanes].exchanged,
                sizeof other);
    return other;
  });
}

template <class T>
T atomicAdd(T* target, T value) {
  T before = *target;
  *target += value;
  return before;
}

template <class T>
T atomicMax(T* target, T value) {
  T before = *target;
  *target = std::max(before, value);
  return before;
}

inline void __threadfence() {}

inline int32_t __dp4a(int32_t a, int32_t b, int32_t sum) {
  auto total = static_cast<uint32_t>(sum);
  for (int shift = 0; shift < 32; shift += 8) {
    total +=
        static_cast<uint32_t>(static_cast<int8_t>(a >> shift) * static_cast<int8_t>(b >> shift));
  }
  return static_cast<int32_t>(total);
}

inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    word |= static_cast<uint32_t>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  }
  return word;
}

namespace bitpare {

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), int64_t blocks, unsigned threads, void*, Args... args) {
  gridDim.x = static_cast<unsigned>(blocks);
  blockDim.x = threads;
  for (int64_t i = 0; i < blocks; ++i) {
    blockIdx.x = static_cast<unsigned>(i);
    cuda_on_host::block().body = [=] { kernel(static_cast<Params>(args)...); };
    cuda_on_host::run_block(threads);
  }
}

}  // namespace bitpare
