// Everything that a C++ compiler takes and that needs Eigen alone. Files, audio and text are in mttt/io/, and
// CUDA is in mttt/cuda.cuh.
//
// Formula, shapes, units, errors: see the single headers.
// Not supported: CUDA.
// Source:  none.
#pragma once

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/codec/codebook_init.hpp"
#include "mttt/codec/conv1d.hpp"
#include "mttt/codec/conv_transpose1d.hpp"
#include "mttt/codec/mimi.hpp"
#include "mttt/codec/mimi_transformer.hpp"
#include "mttt/codec/rvq.hpp"
#include "mttt/codec/seanet.hpp"
#include "mttt/core/permuted_tensor.hpp"
#include "mttt/core/store.hpp"
#include "mttt/laws.hpp"
#include "mttt/lm/delays.hpp"
#include "mttt/lm/depformer.hpp"
#include "mttt/lm/lm_gen.hpp"
#include "mttt/lm/moshi.hpp"
#include "mttt/lm/sampler.hpp"
#include "mttt/lm/temporal.hpp"
#include "mttt/nn/activation.hpp"
#include "mttt/nn/attention.hpp"
#include "mttt/nn/embedding.hpp"
#include "mttt/nn/feed_forward.hpp"
#include "mttt/nn/gating.hpp"
#include "mttt/nn/layer_scale.hpp"
#include "mttt/nn/linear.hpp"
#include "mttt/nn/named.hpp"
#include "mttt/nn/norm.hpp"
#include "mttt/nn/recompute.hpp"
#include "mttt/nn/residual.hpp"
#include "mttt/nn/rope.hpp"
#include "mttt/nn/sequential.hpp"
#include "mttt/presets/mimi.hpp"
#include "mttt/presets/moshi.hpp"
#include "mttt/train/loss.hpp"
#include "mttt/train/moshi_loss.hpp"
#include "mttt/train/trainer.hpp"
