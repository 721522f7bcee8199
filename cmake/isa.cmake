# add_cpu_isa(name flags...): compiles kernels/cpu/variant.cpp once more, as gemmantle_kernels_<name>.
#
# Wide flags stay inside these objects, and each must export its one function and nothing else, or the linker may keep a
# shared inline function compiled for instructions that a machine lacks. Optimisation hides such leaks, so the tests
# also build every variant without it and tests/lint/check_symbols.py reads both.

function(add_cpu_isa name)
  set(targets gemmantle_kernels_${name})
  add_library(gemmantle_kernels_${name} OBJECT kernels/cpu/variant.cpp)
  target_compile_options(gemmantle_kernels_${name} PRIVATE -O3)
  if(GEMMANTLE_TESTS AND NOT GEMMANTLE_SANITIZE)
    list(APPEND targets gemmantle_kernels_${name}_unoptimised)
    add_library(gemmantle_kernels_${name}_unoptimised OBJECT kernels/cpu/variant.cpp)
    target_compile_options(gemmantle_kernels_${name}_unoptimised PRIVATE -O0 -g0 -UNDEBUG)
  endif()
  foreach(target IN LISTS targets)
    target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR})
    target_compile_definitions(${target} PRIVATE GEMMANTLE_ISA_NAME=${name})
    target_compile_options(${target} PRIVATE
      ${ARGN} -fno-math-errno -fno-trapping-math -fno-exceptions -fno-rtti -fno-threadsafe-statics)
    gemmantle_warnings(${target})
  endforeach()
endfunction()
