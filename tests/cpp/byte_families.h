// Ways to run a kernel on bytes in a test, and numbers for it.
#pragma once
#include <algorithm>
#include <cmath>

#include "backends.h"
#include "kernels/int_conv.h"
#include "math/requant.h"
#include "on_cuda.h"

namespace bitpare {

// Calls run(where) on every instruction set for bytes, then on the CUDA emulation, and expects the
// same bytes everywhere.
template <class Run>
auto expect_same_bytes_everywhere(const std::string& what, Run run) {
  decltype(run(OnCpu<Baseline>{serial})) expected = run(OnCpu<Baseline>{serial});
  for (auto c : {CpuCapability::baseline, CpuCapability::avx2, CpuCapability::avx512}) {
    if (c > machine_cpu_capability()) continue;
    for (bool vnni : {false, true}) {
      for (ParallelFor loop : {serial, reversed}) {
        on_cpu_bytes(c, vnni, loop, [&](const auto& cpu) {
          std::string name = std::string(name_of(c)) + (vnni ? " vnni " : " ");
          expect_same_bits(run(cpu), expected, name + what);
        });
      }
    }
  }
  on_cuda([&](const OnCuda& cuda, const std::string& order) {
    expect_same_bits(run(cuda), expected, order + what);
  });
  return expected;
}

inline std::vector<uint8_t> random_bytes(int64_t n, unsigned seed, int most = 255) {
  std::mt19937 random(seed);
  std::vector<uint8_t> x(static_cast<size_t>(n));
  for (auto& v : x) v = static_cast<uint8_t>(random() % static_cast<unsigned>(most + 1));
  return x;
}

// Nearest, ties to even, of a float within int32.
inline int64_t nearest(float x) { return static_cast<int64_t>(std::nearbyint(x)); }

inline int64_t clamped(int64_t x, const CodeRange& r) {
  auto low = static_cast<int64_t>(r.low), high = static_cast<int64_t>(r.high);
  return std::clamp(x, low, high) + r.zero;
}

inline ConvShape conv(int64_t batch, int64_t size, int64_t groups, int64_t in, int64_t out,
                      int64_t kernel, int64_t stride, int64_t pad, int64_t dilation = 1) {
  int64_t out_size = (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
  return {batch,  size,   size,   out_size, out_size, groups, in,       out,
          kernel, kernel, stride, stride,   pad,      pad,    dilation, dilation};
}

}  // namespace bitpare
