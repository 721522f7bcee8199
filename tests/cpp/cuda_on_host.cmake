# kernels/cuda and csrc/backend/cuda compiled by the C++ compiler: CUDA threads are fibers (support/simt) and device
# memory is the host's, so kernels and the backend run where no GPU is. As a library for C++ tests, and as a plugin that
# stands in for libgemmantle_cuda.so.
file(GLOB cuda_kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu)
file(GLOB cuda_backend CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/backend/cuda/*.cpp)
list(FILTER cuda_backend EXCLUDE REGEX "/(cuda_loader|cuda_plugin|device_cuda)\\.cpp$")
file(GLOB simt_sources CONFIGURE_DEPENDS support/simt/*.cpp)
set_source_files_properties(${cuda_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS -xc++)

add_library(gemmantle_cuda_on_host STATIC ${cuda_kernels} ${cuda_backend} ${simt_sources})
target_include_directories(gemmantle_cuda_on_host PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/support/simt)
target_link_libraries(gemmantle_cuda_on_host PUBLIC gemmantle_core)
target_compile_options(gemmantle_cuda_on_host PUBLIC -Wno-unknown-pragmas)  # `#pragma unroll` is nvcc's
gemmantle_warnings(gemmantle_cuda_on_host)

add_library(gemmantle_cuda_plugin_on_host MODULE $<TARGET_OBJECTS:gemmantle_cuda_on_host>
  support/cuda_on_host/plugin_on_host.cpp ${PROJECT_SOURCE_DIR}/csrc/core/error.cpp
  ${PROJECT_SOURCE_DIR}/csrc/backend/ops.cpp)
target_include_directories(gemmantle_cuda_plugin_on_host PRIVATE ${PROJECT_SOURCE_DIR}/csrc ${PROJECT_SOURCE_DIR}
  ${CMAKE_CURRENT_SOURCE_DIR}/support/simt)
target_compile_definitions(gemmantle_cuda_plugin_on_host PRIVATE GEMMANTLE_BUILD_ID="${GEMMANTLE_BUILD_ID}")
if(NOT GEMMANTLE_SANITIZE)
  target_link_options(gemmantle_cuda_plugin_on_host PRIVATE -Wl,--no-undefined)
endif()
gemmantle_warnings(gemmantle_cuda_plugin_on_host)

# The programs of tools/gpu_check, so that they keep compiling; their whole run is `python tools/gpu_check --on-host`.
if(NOT GEMMANTLE_SANITIZE)
  foreach(program IN ITEMS program steps models)
    set(target gemmantle_gpu_check_${program})
    add_executable(${target} ${PROJECT_SOURCE_DIR}/tools/gpu_check/${program}.cpp)
    target_link_libraries(${target} PRIVATE gemmantle_cuda_on_host)
    gemmantle_warnings(${target})
  endforeach()
  add_test(NAME gemmantle_gpu_check_kernels COMMAND gemmantle_gpu_check_program kernels small)
  set_tests_properties(gemmantle_gpu_check_kernels PROPERTIES LABELS cpp FIXTURES_REQUIRED built)
endif()
