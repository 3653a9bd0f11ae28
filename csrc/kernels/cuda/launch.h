// The parts of CUDA that a kernel file needs. Compiled by nvcc it is CUDA; compiled as C++ it is
// the host emulation that the tests run the same files on (tests/cpp/cuda_on_host.h).
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

// Declares a block's shared memory, one variable a kernel; the contents are not initialised.
#define BITPARE_SHARED(Type, name) __shared__ Type name

namespace bitpare {

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), int64_t blocks, unsigned threads, void* stream,
            Args... args) {
  kernel<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<Params>(args)...);
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("bitpare: kernel launch failed: ") +
                             cudaGetErrorString(error));
  }
}

}  // namespace bitpare
#else
#include "cuda_on_host.h"
#endif
