// The law that a block gives the same numbers on the GPU as on the CPU: laws_backends.hpp beside Cuda.
//
// Formula, shapes, units, errors: those of laws_backends.hpp.
// Not supported: blocks with several inputs; their tests use `agreement` and the helpers.
// Source:  none.
#pragma once

#include "mttt/backend/cuda/cuda.cuh"
#include "mttt/laws_backends.hpp"
