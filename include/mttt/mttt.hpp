// Everything that a C++ compiler takes and that needs Eigen alone. Files, audio and text are in mttt/io/, and
// CUDA is in mttt/cuda.cuh.
//
// Formula, shapes, units, errors: see the single headers.
// Not supported: CUDA.
// Source:  none.
#pragma once

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/store.hpp"
#include "mttt/laws.hpp"
#include "mttt/nn/activation.hpp"
#include "mttt/nn/attention.hpp"
#include "mttt/nn/embedding.hpp"
#include "mttt/nn/feed_forward.hpp"
#include "mttt/nn/gating.hpp"
#include "mttt/nn/layer_scale.hpp"
#include "mttt/nn/linear.hpp"
#include "mttt/nn/norm.hpp"
#include "mttt/nn/recompute.hpp"
#include "mttt/nn/residual.hpp"
#include "mttt/nn/rope.hpp"
#include "mttt/nn/sequential.hpp"
#include "mttt/train/loss.hpp"
#include "mttt/train/trainer.hpp"
