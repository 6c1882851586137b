// One step of the depformer for one session, from the temporal transformer's row to the logits of a code, in one
// kernel: the blocks of resident.cuh go through its products. Each block attends to the frame's earlier steps for
// itself, a warp a head: they are few.
//
// Formula: that of lm/depformer.hpp; each sum in the order of the kernels that take several sessions, so that their
//          bits are the same.
// Shapes:  z (in_dim), logits (card); weights of the input (dim, in_dim), of layers as in layers_step.cuh, of the
//          logits (card, dim); qkv of a layer (steps, 3 dim).
// Units:   elements.
// Errors:  those of check.cuh. What it does not take it declines by returning false.
// Not supported: compute capability below 9.0; more than one session; other types than bf16 and weights in 8 or 4
//          bits; heads of other than 64, more than 16 of them; more than 8 steps.
// Source:  as resident.cuh.
#pragma once

#include "mttt/backend/cuda/resident.cuh"
#include "mttt/math/scalar.hpp"

namespace mttt::detail {

inline constexpr int most_depth_layers = 16, most_depth_steps = 8;
using DepthQueue = ResidentQueueShape<tuning::depth_stage, tuning::depth_stages>;

template <class W>
struct DepthLayerTask {
  const bf16 *norm1, *norm2;
  WeightRows<W> in_proj, out_proj, up, down;
  bf16* qkv;
};
template <class W>
struct DepthTask {
  DepthLayerTask<W> layers[most_depth_layers];
  WeightRows<W> in, linear;
  const bf16 *z, *embedding;
  const std::int32_t* code;
  bf16 *told, *logits;
  unsigned* arrived;
  int embedding_card, n_layers, k;
  float eps1, eps2;
};

/// Head `warp` of step k against the steps before, of qkv (steps, 3 dim), and its own, which blocks tell, to 64
/// numbers of `mixed`; as DepthAttend does it with a team of 64. `await` waits for the others.
template <int dim, class Await>
__device__ __forceinline__ void attend_few(const bf16* qkv, int k, const bf16* own, bf16* mixed,
                                           const Await& await) {
  constexpr int D = 64, most = most_depth_steps;
  const int lane = threadIdx.x % 32, head = threadIdx.x / 32;
  const bool has = head < dim / D;
  const auto number = [](std::uint16_t half) {
    return __uint_as_float(static_cast<std::uint32_t>(half) << 16);
  };
  float keys[most][2], values[most][2], q[2];
#pragma unroll
  for (int j = 0; j < most; ++j) {
    if (!has || j >= k) continue;
    const auto* at = reinterpret_cast<const unsigned short*>(qkv + j * 3 * dim + head * D + lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      keys[j][half] = number(__ldcg(at + dim + 32 * half));
      values[j][half] = number(__ldcg(at + 2 * dim + 32 * half));
    }
  }
  await();
  if (has) {
    std::uint16_t raw[3][2];
    bool lacks;
    do {
      lacks = false;
#pragma unroll
      for (int i = 0; i < 6; ++i)
        read_told(own + i / 2 * dim + head * D + lane + i % 2 * 32, raw[i / 2][i % 2]);
#pragma unroll
      for (int i = 0; i < 6; ++i) lacks |= raw[i / 2][i % 2] == 0xffffu;
    } while (lacks);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      q[half] = number(raw[0][half]);
#pragma unroll
      for (int j = 0; j < most; ++j) {
        if (j == k) keys[j][half] = number(raw[1][half]), values[j][half] = number(raw[2][half]);
      }
    }
    float products[2 * most];
#pragma unroll
    for (int i = 0; i < 2 * most; ++i) products[i] = i / 2 <= k ? q[i % 2] * keys[i / 2][i % 2] : 0.0f;
    sum_lanes<2 * most, 16>(products, lane);  // lane l has half l / 2 % 2 of step l / 4
    const float product = products[0] + __shfl_xor_sync(0xffffffffu, products[0], 2);
    const bool valid = lane / 4 <= k;
    const float score = valid ? (1.0f / std::sqrt(static_cast<float>(D))) * product : -INFINITY;
    float largest = score;
#pragma unroll
    for (int distance = 16; distance >= 4; distance /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    const float weight = valid ? math::exp(score - largest) : 0.0f;
    float total = weight;
#pragma unroll
    for (int distance = 16; distance >= 4; distance /= 2)
      total += __shfl_xor_sync(0xffffffffu, total, distance);
    float sums[2] = {};
#pragma unroll
    for (int j = 0; j < most; ++j) {
      const float of_step = __shfl_sync(0xffffffffu, weight, 4 * j);
      if (j > k) continue;
      sums[0] += of_step * values[j][0], sums[1] += of_step * values[j][1];
    }
    const float share = 1.0f / total;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      mixed[head * D + 32 * half + lane] = static_cast<bf16>(sums[half] * share);
  }
}

template <int in_dim, int dim, int hidden, int card, class W>
__global__ void __launch_bounds__(resident_threads + 32, 1)
    depth_kernel(const __grid_constant__ DepthTask<W> task) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __shared__ ResidentShared<DepthQueue> shared;
  const int tid = threadIdx.x;
  if (tid == 0) shared.open();
  __syncthreads();
  if (tid >= resident_threads) {
    if (tid != resident_threads) return;
    ResidentAsker<DepthQueue, W> queue(shared);
    queue.template ask<in_dim, false>(task.in, dim);
    for (int l = 0; l < task.n_layers; ++l) {
      const DepthLayerTask<W>& layer = task.layers[l];
      queue.template ask<dim, false>(layer.in_proj, 3 * dim);
      queue.template ask<dim, false>(layer.out_proj, dim);
      queue.template ask<dim, true>(layer.up, hidden);
      queue.template ask<hidden, false>(layer.down, dim);
    }
    queue.template ask<dim, false>(task.linear, card);
    return;
  }

  bf16* const row = reinterpret_cast<bf16*>(resident_memory + DepthQueue::stages * DepthQueue::stage);
  ResidentBlock<DepthQueue, W> block(
      shared, row, reinterpret_cast<float*>(row + (in_dim > hidden ? in_dim : hidden)), task.arrived);
  // A thread keeps its column of the rows that products are added to.
  const OwnColumns columns(dim);
  const std::int32_t code = *task.code;
  const bool known = code >= 0 && code < task.embedding_card;
  const bf16 embedded = known && tid < columns.count
                            ? task.embedding[static_cast<Index>(code) * dim + columns.first + tid]
                            : bf16(0.0f);
  // What blocks tell each other: the row of the first layer, then in each layer qkv, h, y, g.
  bf16 *const first = task.told, *told = first + dim;
  float kept = 0;
  block.template product<in_dim, false>(
      nullptr, 0, task.in, dim, [&] { block.template fetch_given<in_dim>(task.z); },
      [&](int column, const float* total) {
        bf16 x = static_cast<bf16>(total[0]);
        if (known) x = static_cast<bf16>(wide(x) + wide(embedded));
        tell(first + column, x);
        kept = wide(x);
      });
  const auto add = [&](bf16* to) {
    return [&kept, to](int column, const float* total) {
      const bf16 sum = static_cast<bf16>(total[0] + kept);
      tell(to + column, sum);
      kept = wide(sum);
    };
  };
  const bf16* x = first;
#pragma unroll 1
  for (int l = 0; l < task.n_layers; ++l) {
    const DepthLayerTask<W>& layer = task.layers[l];
    bf16 *const qkv = told, *const h = told + 3 * dim, *const y = told + 4 * dim, *const g = told + 5 * dim;
    block.template product<dim, false>(
        layer.norm1, task.eps1, layer.in_proj, 3 * dim, [&] { block.template fetch_told<dim>(x); },
        [&](int column, const float* total) {
          const bf16 one = static_cast<bf16>(total[0]);
          tell(qkv + column, one);
          layer.qkv[task.k * 3 * dim + column] = one;  // for the steps to come
        });
    block.template product<dim, false>(
        nullptr, 0, layer.out_proj, dim,
        [&] {
          attend_few<dim>(layer.qkv, task.k, qkv, row, [&] { block.await_others(); });
          block.sync();
        },
        add(h));
    block.template product<dim, true>(
        layer.norm2, task.eps2, layer.up, hidden, [&] { block.template fetch_told<dim>(h); },
        [&](int column, const float* total) {
          tell(g + column, static_cast<bf16>(Silu::f(total[0]) * total[1]));
        });
    block.template product<hidden, false>(
        nullptr, 0, layer.down, dim, [&] { block.template fetch_told<hidden>(g); }, add(y));
    x = y;
    told += 5 * dim + hidden;
  }
  block.template product<dim, false>(
      nullptr, 0, task.linear, card, [&] { block.template fetch_told<dim>(x); },
      [&](int column, const float* total) { task.logits[column] = static_cast<bf16>(total[0]); });
  block.leave();
#endif
}

/// False, and nothing done, for what the kernel does not take. `counts` are two zeros that nothing else writes.
template <int in_dim, int dim, int hidden, int card, class B, class Step>
bool depth_step(B& be, const Launcher& launch, int capability, int processors, unsigned* counts,
                const Step& step) {
  using W = FormatOf<decltype(step.in)>;
  const auto columns = [&](Index cols) { return (cols + processors - 1) / processors; };
  if (capability < 90 || step.layers.size() > most_depth_layers || step.k >= most_depth_steps ||
      dim / 64 > resident_warps ||
      std::max({columns(3 * dim), columns(hidden), columns(card)}) > resident_threads ||
      !copies_in_chunks(2, {}, step.z) || !streams(step.in) || !streams(step.linear))
    return false;
  const auto scope = be.scope();
  DepthTask<W> task{};
  task.in = weight_rows(step.in), task.linear = weight_rows(step.linear);
  task.z = step.z, task.embedding = step.embedding, task.code = step.code, task.logits = step.logits;
  const Index told = dim + (5 * dim + hidden) * static_cast<Index>(step.layers.size());
  task.told = be.template make<bf16, dyn>(told).data();
  task.arrived = counts;
  task.embedding_card = static_cast<int>(step.embedding_card);
  task.n_layers = static_cast<int>(step.layers.size());
  task.k = static_cast<int>(step.k);
  for (std::size_t l = 0; l < step.layers.size(); ++l) {
    const auto& layer = step.layers[l];
    if (!streams(layer.in_proj) || !streams(layer.out_proj) || !streams(layer.up) || !streams(layer.down) ||
        !copies_in_chunks(2, {}, layer.norm1.weight, layer.norm2.weight))
      return false;
    task.layers[l] = {layer.norm1.weight,
                      layer.norm2.weight,
                      weight_rows(layer.in_proj),
                      weight_rows(layer.out_proj),
                      weight_rows(layer.up),
                      weight_rows(layer.down),
                      layer.qkv};
    task.eps1 = static_cast<float>(layer.norm1.eps), task.eps2 = static_cast<float>(layer.norm2.eps);
  }
  const Index parts = std::max({resident_parts<DepthQueue, in_dim, false, W>(dim, processors),
                                resident_parts<DepthQueue, dim, false, W>(3 * dim, processors),
                                resident_parts<DepthQueue, dim, true, W>(hidden, processors),
                                resident_parts<DepthQueue, hidden, false, W>(dim, processors),
                                resident_parts<DepthQueue, dim, false, W>(card, processors)});
  const Index shared =
      Index{DepthQueue::stages} * DepthQueue::stage + 2 * std::max(in_dim, hidden) + 4 * parts;
  if (shared > 224 << 10) return false;
  const auto kernel = depth_kernel<in_dim, dim, hidden, card, W>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "asking for shared memory");
  be.fill(reinterpret_cast<std::uint8_t*>(task.told), 2 * told, untold);
  launch.together("a step of the depformer", kernel, static_cast<unsigned>(processors), resident_threads + 32,
                  shared, task);
  return true;
}

}  // namespace mttt::detail
