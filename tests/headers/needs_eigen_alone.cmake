# Fails when a header outside io/ reaches a library other than Eigen and the standard one.
cmake_minimum_required(VERSION 3.22)
list(REMOVE_ITEM INCLUDES "")
list(TRANSFORM INCLUDES PREPEND "-I")
execute_process(COMMAND "${COMPILER}" -std=c++20 -M ${INCLUDES} "${SOURCE}"
  OUTPUT_VARIABLE files ERROR_VARIABLE errors RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${errors}")
endif()
string(REGEX MATCH "[^ ]*/(nlohmann|sndfile\\.h|soxr\\.h|sentencepiece|catch2?|CLI|cuda_runtime|mttt/io)[^ ]*" stranger
  "${files}")
if(stranger)
  message(FATAL_ERROR "A header outside include/mttt/io reaches ${stranger}; mttt::mttt promises to need Eigen alone.")
endif()
