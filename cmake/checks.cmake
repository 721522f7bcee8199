# Warnings, sanitizers, and the source checks that CTest runs beside the tests.

function(gemmantle_warnings target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Werror>)
endfunction()

if(GEMMANTLE_SANITIZE)
  add_compile_options(-fsanitize=${GEMMANTLE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${GEMMANTLE_SANITIZE})
endif()

# The same scripts run under pytest (tests/python/test_lint.py); a sanitizer adds symbols of its own, so there the
# symbol check has nothing to say.
function(gemmantle_lint_tests)
  find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)
  set(lint ${PROJECT_SOURCE_DIR}/tests/lint)
  add_test(NAME lint_layers COMMAND ${Python_EXECUTABLE} ${lint}/check_layers.py)
  add_test(NAME lint_format COMMAND ${Python_EXECUTABLE} ${lint}/check_format.py)
  set_property(TEST lint_format PROPERTY SKIP_RETURN_CODE 77)
  set(lint_tests lint_layers lint_format)
  if(NOT GEMMANTLE_SANITIZE)
    foreach(isa IN LISTS GEMMANTLE_ISAS)
      list(APPEND objects $<TARGET_OBJECTS:gemmantle_kernels_${isa}> $<TARGET_OBJECTS:gemmantle_kernels_${isa}_unoptimised>)
    endforeach()
    add_test(NAME lint_symbols COMMAND ${Python_EXECUTABLE} ${lint}/check_symbols.py ${objects} COMMAND_EXPAND_LISTS)
    add_test(NAME lint_cuda_budget COMMAND ${Python_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tools/cuda_budget.py --arch 90)
    set_property(TEST lint_cuda_budget PROPERTY SKIP_RETURN_CODE 77)
    list(APPEND lint_tests lint_symbols lint_cuda_budget)
  endif()
  set_property(TEST ${lint_tests} PROPERTY LABELS lint)
  set_property(TEST ${lint_tests} PROPERTY FIXTURES_REQUIRED built)
endfunction()

# `ctest` builds first: configuring and testing are the only two commands. Tests name the fixture where they are added.
function(gemmantle_add_build_test)
  add_test(NAME build COMMAND ${CMAKE_COMMAND} --build ${PROJECT_BINARY_DIR})
  set_tests_properties(build PROPERTIES FIXTURES_SETUP built TIMEOUT 3600)
endfunction()
