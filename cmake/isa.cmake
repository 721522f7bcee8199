# add_cpu_isa(name flags...): compiles kernels/cpu/variant.cpp once more, as gemmantle_kernels_<name>, if
# GEMMANTLE_CPU_TABLES asks for it; cpu_isa.cpp learns by GEMMANTLE_TABLE_<name> which tables there are.
#
# Wide flags stay inside these objects, and each must export its one function and nothing else, or the linker may keep a
# shared inline function compiled for instructions that a machine lacks. Optimisation hides such leaks, so the tests
# also build every variant without it and tests/lint/check_symbols.py reads both.

set(GEMMANTLE_ISAS "")               # built
set(GEMMANTLE_KNOWN_ISAS "")         # could be built for this processor
set(GEMMANTLE_TABLE_DEFINITIONS "")  # of cpu_isa.cpp

function(add_cpu_isa name)
  list(APPEND GEMMANTLE_KNOWN_ISAS ${name})
  set(GEMMANTLE_KNOWN_ISAS ${GEMMANTLE_KNOWN_ISAS} PARENT_SCOPE)
  if(NOT name STREQUAL "baseline" AND NOT "${GEMMANTLE_CPU_TABLES}" STREQUAL "all" AND NOT name IN_LIST GEMMANTLE_CPU_TABLES)
    set(GEMMANTLE_TABLE_DEFINITIONS ${GEMMANTLE_TABLE_DEFINITIONS} "GEMMANTLE_TABLE_${name}=nullptr" PARENT_SCOPE)
    return()
  endif()
  set(GEMMANTLE_TABLE_DEFINITIONS ${GEMMANTLE_TABLE_DEFINITIONS} "GEMMANTLE_TABLE_${name}=cpu::kernels_${name}()" PARENT_SCOPE)
  set(GEMMANTLE_ISAS ${GEMMANTLE_ISAS} ${name} PARENT_SCOPE)
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

# After the last add_cpu_isa().
function(check_cpu_tables)
  foreach(name IN LISTS GEMMANTLE_CPU_TABLES)
    if(NOT name STREQUAL "all" AND NOT name IN_LIST GEMMANTLE_KNOWN_ISAS)
      list(JOIN GEMMANTLE_KNOWN_ISAS ", " known)
      message(FATAL_ERROR "GEMMANTLE_CPU_TABLES names '${name}'; there are: ${known}, or all")
    endif()
  endforeach()
endfunction()
