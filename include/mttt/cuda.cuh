// The CUDA backend: Cuda<float> and Cuda<double> in place of Cpu<...>; include it beside mttt.hpp.
//
// Shapes, units: see backend/backend.hpp.
// Errors:  see backend/cuda/cuda.cuh.
// Not supported: compilers other than nvcc.
// Source:  none.
#pragma once

#include "mttt/backend/cuda/cuda.cuh"
