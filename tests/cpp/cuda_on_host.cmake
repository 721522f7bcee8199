# kernels/cuda compiled by the C++ compiler: CUDA threads are fibers (support/simt), so kernels run where no GPU is.
file(GLOB cuda_kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu)
file(GLOB simt_sources CONFIGURE_DEPENDS support/simt/*.cpp)
set_source_files_properties(${cuda_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++;-Wno-unknown-pragmas")

add_library(gemmantle_cuda_kernels_on_host STATIC ${cuda_kernels} ${simt_sources})
target_include_directories(gemmantle_cuda_kernels_on_host PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/support/simt)
target_link_libraries(gemmantle_cuda_kernels_on_host PUBLIC gemmantle_core)
gemmantle_warnings(gemmantle_cuda_kernels_on_host)
