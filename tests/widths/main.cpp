#include <cstdio>

int main(int argc, char** argv) {
#if defined(__AVX512F__) && defined(__AVX512VL__)
  const char* width = "x86-64-v4";
#elif defined(__AVX2__) && defined(__FMA__)
  const char* width = "x86-64-v3";
#elif defined(__SSE4_2__)
  const char* width = "x86-64-v2";
#else
  const char* width = "none";
#endif
  std::printf("%s %s\n", width, argc > 1 ? argv[1] : "");
}
