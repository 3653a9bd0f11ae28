// Facts about this build and this machine, which the dispatcher cannot carry.
#include <pybind11/pybind11.h>

#include "bitpare.h"
#include "kernels/cpu/capability.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about this build of bitpare and the machine it runs on.";
  m.def("version", &bitpare_version, "The version compiled into libbitpare.so.");
  m.def(
      "cpu_capability", [] { return bitpare::name_of(bitpare::cpu_capability()); },
      "The instruction set in use: 'default', 'avx2' or 'avx512'.");
  m.def(
      "machine_cpu_capability", [] { return bitpare::name_of(bitpare::machine_cpu_capability()); },
      "The best instruction set this machine has.");
}
