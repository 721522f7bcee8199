# kernels/cuda and csrc/backend/cuda compiled by the C++ compiler: CUDA threads are fibers (support/simt) and device
# memory is the host's, so kernels and the backend run where no GPU is.
file(GLOB cuda_kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu)
file(GLOB simt_sources CONFIGURE_DEPENDS support/simt/*.cpp)
set_source_files_properties(${cuda_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++;-Wno-unknown-pragmas")

file(GLOB cuda_backend CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/backend/cuda/*.cpp)
list(FILTER cuda_backend EXCLUDE REGEX "/(cuda_loader|cuda_plugin|device_cuda)\\.cpp$")

add_library(gemmantle_cuda_on_host STATIC ${cuda_kernels} ${cuda_backend} ${simt_sources})
target_include_directories(gemmantle_cuda_on_host PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/support/simt)
target_link_libraries(gemmantle_cuda_on_host PUBLIC gemmantle_core)
gemmantle_warnings(gemmantle_cuda_on_host)
