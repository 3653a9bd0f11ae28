// Which instruction set this process uses.
#pragma once
#include "kernels/backend.h"

namespace bitpare {

enum class CpuCapability : int32_t { baseline, avx2, avx512 };

// The best that the machine has, whatever was asked for.
CpuCapability machine_cpu_capability();

// The one in use: BITPARE_CPU_CAPABILITY (default, avx2 or avx512) where it is set, else the best.
// Throws std::runtime_error for an unknown name, or one that the machine lacks.
CpuCapability cpu_capability();

const char* name_of(CpuCapability capability);

// Calls f(OnCpu<Isa>) for the given capability.
template <class F>
void on_cpu(CpuCapability capability, ParallelFor parallel_for, F f) {
#ifdef BITPARE_X86
  if (capability == CpuCapability::avx512) return f(OnCpu<Avx512>{parallel_for});
  if (capability == CpuCapability::avx2) return f(OnCpu<Avx2>{parallel_for});
#endif
  f(OnCpu<Baseline>{parallel_for});
}

bool machine_has_vnni();

// The same for a family on bytes; vnni: with it where the machine has it.
template <class F>
void on_cpu_bytes(CpuCapability capability, bool vnni, ParallelFor parallel_for, F f) {
#ifdef BITPARE_X86
  if (capability == CpuCapability::avx512 && vnni && machine_has_vnni()) {
    return f(OnCpu<Avx512Vnni>{parallel_for});
  }
#endif
  on_cpu(capability, parallel_for, f);
}

}  // namespace bitpare
