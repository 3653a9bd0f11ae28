# Makes the interface target `torch_from_python` from the torch that BITPARE_PYTHON imports.
# find_package(Torch) is not used: it fails with a CUDA wheel where there is no toolkit, and leaks
# compiler flags. Sets BITPARE_TORCH_VERSION, BITPARE_TORCH_CUDA (empty for a CPU torch),
# BITPARE_TORCH_LIB and BITPARE_CUDA_WHEEL_LIB.
execute_process(
  COMMAND ${BITPARE_PYTHON} -I ${CMAKE_CURRENT_LIST_DIR}/torch_facts.py
  OUTPUT_VARIABLE facts RESULT_VARIABLE failed ERROR_VARIABLE said
  OUTPUT_STRIP_TRAILING_WHITESPACE)
if(failed)
  message(FATAL_ERROR "bitpare builds against an installed torch, and ${BITPARE_PYTHON} has none.\n"
    "  pip install torch==2.11.0\n${said}")
endif()
list(GET facts 0 BITPARE_TORCH_VERSION)
list(GET facts 1 torch_root)
list(GET facts 2 torch_abi)
list(GET facts 3 BITPARE_TORCH_CUDA)
list(GET facts 4 BITPARE_CUDA_WHEEL_LIB)
list(GET facts 5 BITPARE_PYTHON_INCLUDE)
list(GET facts 6 BITPARE_PYTHON_SUFFIX)
set(BITPARE_TORCH_LIB ${torch_root}/lib)

add_library(torch_from_python INTERFACE)
target_include_directories(torch_from_python SYSTEM INTERFACE
  ${torch_root}/include ${torch_root}/include/torch/csrc/api/include)
target_compile_definitions(torch_from_python INTERFACE _GLIBCXX_USE_CXX11_ABI=${torch_abi})
target_link_directories(torch_from_python INTERFACE ${BITPARE_TORCH_LIB})
target_link_libraries(torch_from_python INTERFACE torch_cpu c10)
