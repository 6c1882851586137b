# Warnings of our own programs. Users choose theirs: nothing here reaches mttt::mttt.
function(mttt_warnings target)
  set(warnings -Wall -Wextra -Wshadow -Wconversion
    -Wno-sign-conversion   # Eigen counts in signed, the standard library in unsigned
    -Wno-unknown-pragmas)  # `#pragma omp` without OpenMP, `#pragma unroll` of nvcc
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND warnings -Winvalid-pch)
    if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
      # These take g++'s own AVX-512 intrinsics, inlined from Eigen, for uninitialised (GCC bug 105593).
      list(APPEND warnings -Wno-uninitialized -Wno-maybe-uninitialized)
      # These do not see that a short string fits into its own buffer, that strings do not overlap (GCC bugs 109299,
      # 105651), and that a count of elements, inlined into memcpy, is not negative.
      list(APPEND warnings -Wno-array-bounds -Wno-restrict -Wno-stringop-overflow)
    endif()
  endif()
  if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    list(APPEND warnings -Wno-pass-failed)  # a loop under MTTT_SIMD that it leaves as it is: slower, not wrong
  endif()
  if(MTTT_WARNINGS_AS_ERRORS)
    list(APPEND warnings -Werror)
  endif()
  target_compile_options(${target} INTERFACE
    "$<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:${warnings}>")
endfunction()
