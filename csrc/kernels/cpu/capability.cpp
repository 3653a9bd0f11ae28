#include "kernels/cpu/capability.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace bitpare {

CpuCapability machine_cpu_capability() {
#ifdef BITPARE_X86
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return CpuCapability::avx512;
  if (avx2) return CpuCapability::avx2;
#endif
  return CpuCapability::baseline;
}

bool machine_has_vnni() {
#ifdef BITPARE_X86
  return machine_cpu_capability() == CpuCapability::avx512 && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

const char* name_of(CpuCapability capability) {
  switch (capability) {
    case CpuCapability::avx512:
      return "avx512";
    case CpuCapability::avx2:
      return "avx2";
    default:
      return "default";
  }
}

namespace {

CpuCapability choose() {
  CpuCapability best = machine_cpu_capability();
  const char* wanted = std::getenv("BITPARE_CPU_CAPABILITY");
  if (!wanted || !*wanted) return best;
  for (auto c : {CpuCapability::baseline, CpuCapability::avx2, CpuCapability::avx512}) {
    if (wanted == std::string(name_of(c)) && c <= best) return c;
  }
  throw std::runtime_error(
      std::string("BITPARE_CPU_CAPABILITY must be default, avx2 or avx512, and at most what this "
                  "machine has (") +
      name_of(best) + "), got '" + wanted + "'");
}

}  // namespace

CpuCapability cpu_capability() {
  static const CpuCapability chosen = choose();
  return chosen;
}

}  // namespace bitpare
