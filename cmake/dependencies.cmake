# Libraries: the system's where it has them, fetched where it has none (FIND_PACKAGE_ARGS tries find_package first).
include(FetchContent)
find_package(Threads REQUIRED)

set(JSON_BuildTests OFF)
set(EIGEN_BUILD_DOC OFF)
set(EIGEN_BUILD_TESTING OFF)
set(EIGEN_BUILD_PKGCONFIG OFF)
set(INSTALL_GTEST OFF)
set(BENCHMARK_ENABLE_TESTING OFF)
set(BENCHMARK_ENABLE_INSTALL OFF)

FetchContent_Declare(nlohmann_json SYSTEM
  GIT_REPOSITORY https://github.com/nlohmann/json.git GIT_TAG v3.11.3 GIT_SHALLOW ON FIND_PACKAGE_ARGS 3.10)
FetchContent_Declare(Eigen3 SYSTEM
  GIT_REPOSITORY https://gitlab.com/libeigen/eigen.git GIT_TAG 3.4.0 GIT_SHALLOW ON FIND_PACKAGE_ARGS 3.4)
FetchContent_Declare(GTest SYSTEM
  GIT_REPOSITORY https://github.com/google/googletest.git GIT_TAG v1.14.0 GIT_SHALLOW ON FIND_PACKAGE_ARGS 1.12)
FetchContent_Declare(benchmark SYSTEM
  GIT_REPOSITORY https://github.com/google/benchmark.git GIT_TAG v1.8.3 GIT_SHALLOW ON FIND_PACKAGE_ARGS 1.7)

FetchContent_MakeAvailable(nlohmann_json Eigen3)
if(GEMMANTLE_TESTS)
  FetchContent_MakeAvailable(GTest)
endif()
if(GEMMANTLE_BENCH)
  FetchContent_MakeAvailable(benchmark)
endif()

if(GEMMANTLE_PYTHON)
  find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
  set(PYBIND11_FINDPYTHON ON)
  execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
    OUTPUT_VARIABLE pybind11_hint OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_package(pybind11 2.13 CONFIG REQUIRED HINTS ${pybind11_hint})
endif()
