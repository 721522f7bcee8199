# Each tests/fuzz/<name>.cpp holds one LLVMFuzzerTestOneInput. With GEMMANTLE_FUZZ (Clang) it becomes the libFuzzer
# program gemmantle_fuzz_<name>; with GEMMANTLE_TESTS, any compiler makes gemmantle_fuzz_<name>_replay, a test that
# feeds it every file of tests/fuzz/corpus/<name>.
if(GEMMANTLE_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "GEMMANTLE_FUZZ needs Clang (found ${CMAKE_CXX_COMPILER_ID}): use --preset fuzz, or clang++-16")
  endif()
  target_compile_options(gemmantle_core PRIVATE -fsanitize=fuzzer-no-link)
endif()

file(GLOB fuzz_sources CONFIGURE_DEPENDS tests/fuzz/*.cpp)
foreach(source IN LISTS fuzz_sources)
  get_filename_component(name ${source} NAME_WE)
  if(GEMMANTLE_FUZZ)
    add_executable(gemmantle_fuzz_${name} ${source})
    target_compile_options(gemmantle_fuzz_${name} PRIVATE -fsanitize=fuzzer)
    target_link_options(gemmantle_fuzz_${name} PRIVATE -fsanitize=fuzzer)
    target_link_libraries(gemmantle_fuzz_${name} PRIVATE gemmantle_core)
    gemmantle_warnings(gemmantle_fuzz_${name})
  endif()
  if(GEMMANTLE_TESTS)
    add_executable(gemmantle_fuzz_${name}_replay ${source} tests/fuzz/replay/replay.cpp)
    target_link_libraries(gemmantle_fuzz_${name}_replay PRIVATE gemmantle_core)
    gemmantle_warnings(gemmantle_fuzz_${name}_replay)
    add_test(NAME gemmantle_fuzz_${name}_replay
      COMMAND gemmantle_fuzz_${name}_replay ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${name})
    set_property(TEST gemmantle_fuzz_${name}_replay PROPERTY LABELS cpp)
  endif()
endforeach()
