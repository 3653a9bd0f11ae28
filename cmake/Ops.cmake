# libbitpare.so: the ops and integer models, for C++ and Python alike. _C: the Python module that goes with it.
file(GLOB op_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/ops/*.cpp
  ${CMAKE_CURRENT_SOURCE_DIR}/csrc/integer/*.cpp)

add_library(bitpare SHARED ${op_sources})
target_compile_definitions(bitpare PRIVATE BITPARE_VERSION="${PROJECT_VERSION}")
# at::parallel_for is serial without -fopenmp; the runtime is torch's own, so it is not linked.
target_compile_options(bitpare PRIVATE -fopenmp)
target_precompile_headers(bitpare PRIVATE <ATen/ATen.h> <torch/library.h>
  <torch/csrc/autograd/custom_function.h>)
target_link_libraries(bitpare PUBLIC torch_from_python bitpare_flags)
target_link_libraries(bitpare PRIVATE $<LINK_LIBRARY:WHOLE_ARCHIVE,bitpare_kernels>)
target_include_directories(bitpare PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/csrc)
# A library that only registers ops is dropped by linkers that keep what is referred to.
target_link_options(bitpare INTERFACE "LINKER:--undefined=bitpare_version")
if(BITPARE_WITH_CUDA)
  target_compile_definitions(bitpare PUBLIC BITPARE_WITH_CUDA)
  target_link_libraries(bitpare PRIVATE c10_cuda cudart)
  target_link_directories(bitpare PRIVATE ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES})
endif()

add_library(_C MODULE csrc/module.cpp)
target_include_directories(_C SYSTEM PRIVATE ${BITPARE_PYTHON_INCLUDE})
target_link_libraries(_C PRIVATE bitpare)
# CpuCapability is asked of libbitpare.so, which holds the one copy in use.
target_compile_definitions(_C PRIVATE $<$<STREQUAL:${CMAKE_SYSTEM_PROCESSOR},x86_64>:BITPARE_X86>)
set_target_properties(_C PROPERTIES PREFIX "" SUFFIX "${BITPARE_PYTHON_SUFFIX}")

# Beside each other, then beside torch where both are in one site-packages, then the torch built
# against (editable installs, the build folder).
set(runtime_path "$ORIGIN:$ORIGIN/../torch/lib:${BITPARE_TORCH_LIB}:${BITPARE_CUDA_WHEEL_LIB}")
set_target_properties(bitpare _C PROPERTIES
  BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "${runtime_path}")

if(NOT BITPARE_WITH_CUDA)
  set(BITPARE_CUDA_ARCHS "")
endif()
configure_file(cmake/build_info.py.in _build_info.py @ONLY)
install(TARGETS bitpare _C LIBRARY DESTINATION .)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/_build_info.py DESTINATION .)
