# gemmantle_cuda: the plugin the core opens at run time. It links the CUDA run time statically, compiles the small
# sources behind the border headers into itself, and exports one C function.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(GEMMANTLE_NVCC nvcc HINTS /usr/local/cuda/bin)
  if(GEMMANTLE_NVCC)
    set(CMAKE_CUDA_COMPILER ${GEMMANTLE_NVCC})
  endif()
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 86 89 90 100 120 CACHE STRING "CUDA architectures of the plugin" FORCE)
endif()
enable_language(CUDA)
# CMake 3.25 does not know that nvcc speaks C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)

file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/backend/cuda/*.cpp kernels/cuda/*.cu)
list(FILTER cuda_sources EXCLUDE REGEX "/cuda_loader\\.cpp$")
set_source_files_properties(csrc/backend/cuda/cuda_plugin.cpp PROPERTIES LANGUAGE CUDA)

add_library(gemmantle_cuda MODULE ${cuda_sources} csrc/core/error.cpp csrc/backend/ops.cpp)
target_include_directories(gemmantle_cuda PRIVATE ${PROJECT_SOURCE_DIR}/csrc ${PROJECT_SOURCE_DIR})
target_compile_definitions(gemmantle_cuda PRIVATE GEMMANTLE_BUILD_ID="${GEMMANTLE_BUILD_ID}")
target_compile_options(gemmantle_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Wshadow -Werror=all-warnings>)
set_target_properties(gemmantle_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
target_link_options(gemmantle_cuda PRIVATE -Wl,--exclude-libs,ALL -Wl,--no-undefined)
gemmantle_warnings(gemmantle_cuda)
if(GEMMANTLE_PYTHON)
  install(TARGETS gemmantle_cuda LIBRARY DESTINATION gemmantle COMPONENT python)
endif()
