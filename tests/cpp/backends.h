// Ways to run a kernel in a test: each instruction set this machine has, and the CUDA kernels on
// the host, all held to the same bits.
#pragma once
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/capability.h"
#include "math/half.h"

namespace bitpare {

inline void serial(int64_t begin, int64_t end, int64_t, RangeBody body, void* context) {
  body(context, begin, end);
}

// Runs small pieces, the last first, so that a kernel that depends on order or on whole ranges
// fails.
inline void reversed(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
  int64_t pieces = (end - begin + grain - 1) / grain;
  for (int64_t p = pieces - 1; p >= 0; --p) {
    int64_t b = begin + p * grain;
    body(context, b, std::min(end, b + grain));
  }
}

// Calls f(OnCpu<Isa>, name) for each instruction set of this machine, in order and reversed.
template <class F>
void on_every_cpu(F f) {
  for (auto c : {CpuCapability::baseline, CpuCapability::avx2, CpuCapability::avx512}) {
    if (c > machine_cpu_capability()) continue;
    on_cpu(c, serial, [&](const auto& cpu) { f(cpu, std::string(name_of(c))); });
    on_cpu(c, reversed, [&](const auto& cpu) { f(cpu, std::string(name_of(c)) + " reversed"); });
  }
}

template <class T>
std::vector<T> narrowed(const std::vector<float>& x) {
  std::vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) math::narrow(x[i], &y[i]);
  return y;
}

// Returns values around a few steps of a grid, with ties, infinities, NaN, both zeros and
// subnormals.
inline std::vector<float> test_values(int64_t n, unsigned seed, float spread = 3.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> x(static_cast<size_t>(n));
  const float special[] = {0.0f,     -0.0f,     0.5f,   -1.5f,   2.5f, 1e30f,      -1e30f,
                           INFINITY, -INFINITY, 1e-40f, -1e-42f, NAN,  8388609.0f, -0.25f};
  for (auto& v : x)
    v = random() % 16 == 0 ? special[random() % std::size(special)] : normal(random);
  return x;
}

inline std::vector<float> finite_values(int64_t n, unsigned seed, float spread = 3.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> x(static_cast<size_t>(n));
  for (auto& v : x) v = normal(random);
  return x;
}

// Returns the bits of each element, all NaN as the same bits, for comparisons without a tolerance.
inline uint32_t comparable(float x) {
  return x == x ? __builtin_bit_cast(uint32_t, x) : 0x7fc00000u;
}
inline uint32_t comparable(Half x) { return (x.bits & 0x7fff) > 0x7c00 ? 0x7e00 : x.bits; }
inline uint32_t comparable(BFloat16 x) { return (x.bits & 0x7fff) > 0x7f80 ? 0x7fc0 : x.bits; }
template <class T>
  requires std::is_integral_v<T>
uint64_t comparable(T x) {
  return static_cast<uint64_t>(x);
}

template <class T>
void expect_same_bits(const std::vector<T>& got, const std::vector<T>& expected,
                      const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  int shown = 0;
  for (size_t i = 0; i < got.size() && shown < 3; ++i) {
    if (comparable(got[i]) != comparable(expected[i])) {
      ADD_FAILURE() << what << ": element " << i << " of " << got.size() << " is "
                    << comparable(got[i]) << ", expected " << comparable(expected[i]);
      ++shown;
    }
  }
}

}  // namespace bitpare
