# Compiles SOURCE with -DRIGHT and with -DWRONG, and compares with its first line. See CMakeLists.txt.
cmake_minimum_required(VERSION 3.22)
file(STRINGS "${SOURCE}" first_line LIMIT_COUNT 1)
if(NOT first_line MATCHES "^// expect: (.+)$")
  message(FATAL_ERROR "must_fail: no expectation\n${SOURCE}: the first line must be `// expect: <regex>`.")
endif()
set(expected "${CMAKE_MATCH_1}")

list(REMOVE_ITEM INCLUDES "")
list(TRANSFORM INCLUDES PREPEND "-I")
set(ENV{LC_ALL} C)  # plain quotes in the compiler's messages
foreach(side RIGHT WRONG)
  execute_process(COMMAND "${COMPILER}" -std=c++20 -fsyntax-only -fopenmp-simd ${FLAGS} ${INCLUDES} -D${side} "${SOURCE}"
    OUTPUT_VARIABLE output_${side} ERROR_VARIABLE output_${side} RESULT_VARIABLE status_${side})
endforeach()

# Lines that start with a space are printed as they are.
string(REPLACE "\n" "\n  " shown_RIGHT "  ${output_RIGHT}")
string(REPLACE "\n" "\n  " shown_WRONG "  ${output_WRONG}")
if(NOT status_RIGHT EQUAL 0)
  message(FATAL_ERROR "must_fail: RIGHT did not compile\n${shown_RIGHT}")
elseif(status_WRONG EQUAL 0)
  message(FATAL_ERROR "must_fail: WRONG compiled\n  expected an error that matches: ${expected}")
elseif(NOT output_WRONG MATCHES "${expected}")
  message(FATAL_ERROR
    "must_fail: WRONG failed with another message\n  expected a match of: ${expected}\n  found:\n${shown_WRONG}")
endif()
message("must_fail: as expected, ${expected}")
