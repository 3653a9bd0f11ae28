# bitpare_kernels: static, torch-free. Each file in csrc/kernels/cpu is compiled once for each
# instruction set; those in csrc/kernels/cuda where there is a CUDA compiler that fits.

# Sets BITPARE_WITH_CUDA, and enables the language, or says once why not.
set(BITPARE_WITH_CUDA OFF)
if(NOT BITPARE_CUDA STREQUAL "OFF")
  find_program(bitpare_nvcc nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
  set(why_not "")
  if(NOT bitpare_nvcc)
    set(why_not "there is no nvcc on PATH or in CUDA_HOME")
  elseif(BITPARE_TORCH)
    execute_process(COMMAND ${bitpare_nvcc} --version OUTPUT_VARIABLE nvcc_says)
    string(REGEX MATCH "release ([0-9]+)" matched "${nvcc_says}")
    set(nvcc_major ${CMAKE_MATCH_1})
    string(REGEX MATCH "^[0-9]+" torch_major "${BITPARE_TORCH_CUDA}")
    if(NOT nvcc_major STREQUAL torch_major)
      set(why_not "nvcc is of CUDA ${nvcc_major}, torch of CUDA ${BITPARE_TORCH_CUDA}")
    endif()
  endif()
  if(NOT why_not)
    set(BITPARE_WITH_CUDA ON)
  elseif(BITPARE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "BITPARE_CUDA=ON, but ${why_not}")
  else()
    message(STATUS "bitpare: building for the CPU only, because ${why_not}")
  endif()
endif()

if(BITPARE_WITH_CUDA)
  # "8.0 9.0+PTX" or "80;90": the last also as PTX, for devices to come.
  set(archs "80;86;89;90")
  if(DEFINED ENV{TORCH_CUDA_ARCH_LIST})
    string(REGEX REPLACE "[ ,]+" ";" archs "$ENV{TORCH_CUDA_ARCH_LIST}")
    string(REPLACE "+PTX" "" archs "${archs}")
    string(REPLACE "." "" archs "${archs}")
  endif()
  set(BITPARE_CUDA_ARCHS "${archs}")
  list(POP_BACK archs newest)
  list(TRANSFORM archs APPEND "-real")
  list(APPEND archs ${newest})
  set(CMAKE_CUDA_ARCHITECTURES "${archs}")
  set(CMAKE_CUDA_COMPILER ${bitpare_nvcc})
  set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
  enable_language(CUDA)
endif()

set(kernels ${CMAKE_CURRENT_SOURCE_DIR}/csrc/kernels)
file(GLOB cpu_families CONFIGURE_DEPENDS ${kernels}/cpu/*.cpp)
list(REMOVE_ITEM cpu_families ${kernels}/cpu/capability.cpp)
file(GLOB cuda_families CONFIGURE_DEPENDS ${kernels}/cuda/*.cu)

add_library(bitpare_kernels STATIC ${kernels}/cpu/capability.cpp)
target_include_directories(bitpare_kernels PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/csrc)
target_link_libraries(bitpare_kernels PUBLIC bitpare_flags)

# kernels_for(<Isa> <flags>...): the families for one instruction set.
function(kernels_for isa)
  add_library(kernels_${isa} OBJECT ${cpu_families})
  target_compile_definitions(kernels_${isa} PRIVATE BITPARE_ISA=${isa})
  # GCC 12's intrinsics read variables of their own before they are set.
  target_compile_options(kernels_${isa} PRIVATE ${ARGN} -Wno-uninitialized
    -Wno-maybe-uninitialized)
  target_include_directories(kernels_${isa} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/csrc)
  target_link_libraries(kernels_${isa} PRIVATE bitpare_flags)
  target_sources(bitpare_kernels PRIVATE $<TARGET_OBJECTS:kernels_${isa}>)
endfunction()

kernels_for(Baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_compile_definitions(bitpare_kernels PUBLIC BITPARE_X86)
  kernels_for(Avx2 -mavx2 -mfma -mf16c)
  kernels_for(Avx512 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl)
endif()

if(BITPARE_WITH_CUDA)
  add_library(kernels_cuda OBJECT ${cuda_families})
  target_include_directories(kernels_cuda PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/csrc)
  target_compile_options(kernels_cuda PRIVATE
    -std=c++20 -O3 -fmad=false -Xcompiler=-fPIC,-Wall,-Wno-unknown-pragmas)
  target_sources(bitpare_kernels PRIVATE $<TARGET_OBJECTS:kernels_cuda>)
  target_compile_definitions(bitpare_kernels PUBLIC BITPARE_WITH_CUDA)
  target_include_directories(bitpare_kernels SYSTEM PUBLIC
    ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
endif()
