# Programs that are compiled for several vector widths of x86-64; which of them runs, the processor decides:
#   mttt_widths(<target>)    bin/NAME is compiled for SSE4, bin/x86-64-v3/NAME for AVX2 and bin/x86-64-v4/NAME for
#                            AVX-512; the first becomes the best of the three when it starts
# Call it when the target is complete; it must link mttt_width.
set(MTTT_WIDER x86-64-v3 x86-64-v4)
add_library(mttt_width INTERFACE)
target_compile_options(mttt_width INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-march=$<IF:$<BOOL:$<TARGET_PROPERTY:MTTT_WIDTH>>,$<TARGET_PROPERTY:MTTT_WIDTH>,x86-64-v2>>")

function(mttt_widths target)
  get_target_property(name ${target} OUTPUT_NAME)
  if(NOT name)
    set(name ${target})
  endif()
  get_target_property(folder ${target} RUNTIME_OUTPUT_DIRECTORY)
  get_target_property(sources ${target} SOURCES)
  foreach(width IN LISTS MTTT_WIDER)
    set(wider ${target}_${width})
    add_executable(${wider} ${sources})
    foreach(property LINK_LIBRARIES COMPILE_DEFINITIONS COMPILE_FEATURES INCLUDE_DIRECTORIES)
      get_target_property(value ${target} ${property})
      if(value)
        set_target_properties(${wider} PROPERTIES ${property} "${value}")
      endif()
    endforeach()
    set_target_properties(${wider} PROPERTIES
      MTTT_WIDTH ${width} OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY "${folder}/${width}" EXCLUDE_FROM_ALL ON)
    add_dependencies(${target} ${wider})
  endforeach()
  target_sources(${target} PRIVATE "${PROJECT_SOURCE_DIR}/cmake/widths.cpp")
endfunction()
