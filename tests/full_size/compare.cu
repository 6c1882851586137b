// compare.hpp on the GPU: small and 7b, float32 and bf16.
#include "compare.hpp"
#include "mttt/cuda.cuh"

int main(int argc, char** argv) { return mttt::full_size::run<mttt::Cuda>(argc, argv); }
