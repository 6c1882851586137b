# How our own programs (tests, examples, benchmarks) are compiled. Nothing here reaches users of the library.
#
# mttt_programs                         link this: the library, every component found, our flags
# mttt_precompiled                      examples and benchmarks take its precompiled headers
# mttt_lacks(<variable> <source>...)    the components that the sources include and that were not found
# mttt_link_ranks(<target> <source>...) links MPI and NCCL to a program whose sources include their headers
include(CheckCXXCompilerFlag)
include(warnings)

if(PROJECT_IS_TOP_LEVEL)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release, RelWithDebInfo or MinSizeRel" FORCE)
  endif()
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
endif()
set(CMAKE_CXX_EXTENSIONS OFF)
set(MTTT_BIN_DIR "${PROJECT_BINARY_DIR}/bin")

if(MTTT_TIME_COMPILE)  # without a cache: a cached compilation takes no time
  set(CMAKE_CXX_COMPILER_LAUNCHER
    "${PROJECT_SOURCE_DIR}/cmake/timed_compile.sh;${PROJECT_BINARY_DIR}/compile_times.tsv")
elseif(NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(MTTT_CCACHE ccache)
  if(MTTT_CCACHE)  # the two sloppinesses are what ccache asks for to cache precompiled headers
    set(CMAKE_CXX_COMPILER_LAUNCHER
      "${CMAKE_COMMAND};-E;env;CCACHE_SLOPPINESS=pch_defines,time_macros;${MTTT_CCACHE}")
  endif()
endif()

add_library(mttt_programs INTERFACE)
target_link_libraries(mttt_programs INTERFACE mttt::mttt)
mttt_warnings(mttt_programs)
foreach(component io audio text yaml)
  if(TARGET mttt::${component})
    target_link_libraries(mttt_programs INTERFACE mttt::${component})
  endif()
endforeach()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  include(widths)
endif()
if(MTTT_WIDTHS)
  if(MTTT_NATIVE OR NOT TARGET mttt_width)
    message(FATAL_ERROR "MTTT_WIDTHS=ON: found MTTT_NATIVE=${MTTT_NATIVE} on ${CMAKE_SYSTEM_PROCESSOR}; expected "
      "MTTT_NATIVE=OFF on x86_64")
  endif()
  target_link_libraries(mttt_programs INTERFACE mttt_width)
endif()

if(MTTT_NATIVE)
  check_cxx_compiler_flag(-march=native MTTT_MARCH_NATIVE)
  if(MTTT_MARCH_NATIVE)
    target_compile_options(mttt_programs INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
  endif()
endif()

if(MTTT_OPENMP)
  find_package(OpenMP QUIET COMPONENTS CXX)
  if(OpenMP_CXX_FOUND)
    target_link_libraries(mttt_programs INTERFACE OpenMP::OpenMP_CXX)
  else()
    message(STATUS "OpenMP was not found: our programs use one thread")
  endif()
endif()

# Other people's headers are compiled once; never ours, so that an edit compiles only what includes it.
set(MTTT_PRECOMPILED <Eigen/Core> <algorithm> <array> <cmath> <cstdint> <cstring> <filesystem> <fstream> <functional>
  <map> <memory> <optional> <random> <sstream> <string> <tuple> <vector>)
if(TARGET mttt::io)
  list(APPEND MTTT_PRECOMPILED <nlohmann/json.hpp>)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")  # lets ccache cache what uses a precompiled header
  target_compile_options(mttt_programs INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
endif()
if(MTTT_BUILD_EXAMPLES OR MTTT_BUILD_BENCH)
  add_library(mttt_precompiled OBJECT "${CMAKE_CURRENT_LIST_DIR}/precompiled.cpp")
  target_link_libraries(mttt_precompiled PRIVATE mttt_programs)
  target_precompile_headers(mttt_precompiled PRIVATE ${MTTT_PRECOMPILED})
endif()

function(mttt_lacks variable)
  set(lacks "")
  foreach(source IN LISTS ARGN)
    file(STRINGS "${source}" includes
      REGEX "^ *#include +[<\"]mttt/(io/[a-z_0-9/]+\\.hpp|backend/cuda/nccl\\.cuh)[>\"]")
    foreach(include IN LISTS includes)
      if(include MATCHES "nccl\\.cuh")
        set(component nccl)
      elseif(include MATCHES "mttt/io/(audio|text|yaml|mpi)(_config)?\\.hpp")
        set(component ${CMAKE_MATCH_1})
      else()
        set(component io)
      endif()
      if(NOT TARGET mttt::${component})
        list(APPEND lacks mttt::${component})
      endif()
    endforeach()
  endforeach()
  list(REMOVE_DUPLICATES lacks)
  set(${variable} "${lacks}" PARENT_SCOPE)
endfunction()

function(mttt_link_ranks target)
  foreach(source IN LISTS ARGN)
    file(STRINGS "${source}" includes REGEX "^ *#include +[<\"]mttt/(io/mpi\\.hpp|backend/cuda/nccl\\.cuh)[>\"]")
    foreach(include IN LISTS includes)
      if(include MATCHES "nccl\\.cuh" AND TARGET mttt::nccl)
        target_link_libraries(${target} PRIVATE mttt::nccl)
      elseif(include MATCHES "mpi\\.hpp" AND TARGET mttt::mpi)
        target_link_libraries(${target} PRIVATE mttt::mpi)
      endif()
    endforeach()
  endforeach()
endfunction()
