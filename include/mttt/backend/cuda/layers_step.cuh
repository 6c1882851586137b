// One streaming step of one session through all layers of a transformer, in one kernel.
//
// The blocks of resident.cuh go through four products a layer and the attention between; the cached keys and
// values pass through the same queue as the weights, asked for ahead like them. A head's keys are cut into the
// parts of attention_step.cuh, one a block, and who needs the mixed row joins them. The step's own key is turned
// by all blocks of its head and written to the ring by one; nobody reads that slot.
//
// Formula: that of lm/temporal.hpp's layers without TTT; each sum in the order of the kernels that take several
//          sessions, so that their bits are the same.
// Shapes:  x, y (dim); a layer's weights (3 dim, dim), (dim, dim), (2 hidden, dim), (dim, hidden); caches (heads,
//          context, 128).
// Units:   elements.
// Errors:  those of check.cuh. What it does not take it declines by returning false.
// Not supported: compute capability below 9.0; more than one session or step; other types than bf16 and weights in 8
//          or 4 bits; heads of other than 128; fewer heads of keys than of queries; layers of one session that
//          have seen different numbers of steps; GPUs with fewer multiprocessors than parts.
// Source:  as resident.cuh and attention_step.cuh.
#pragma once

#include <array>

#include "mttt/backend/cuda/attention_step.cuh"
#include "mttt/backend/cuda/resident.cuh"
#include "mttt/math/scalar.hpp"
#include "mttt/nn/rope.hpp"

namespace mttt::detail {

inline constexpr int most_layers = 64;
using LayersQueue = ResidentQueueShape<tuning::layers_stage, tuning::layers_stages, tuning::layers_under_way>;

template <class W>
struct LayerTask {
  const bf16 *norm1, *norm2;
  WeightRows<W> in_proj, out_proj, up, down;
  bf16 *keys, *values;
  std::int64_t* position;
  const std::int64_t* context;
};
template <class W>
struct LayersTask {
  LayerTask<W> layers[most_layers];
  const bf16* x;
  bf16 *y, *told;
  const std::uint8_t* mask;
  unsigned* arrived;
  int n_layers, context;
  float eps1, eps2;
  double log_period;
};

/// What blocks tell each other in a layer, in numbers of bf16 that lie one after another; mixes are of float.
template <int dim, int hidden>
struct LayerTold {
  static constexpr int mix = 128 + 4, mixes = dim / 128 * tuning::ring_parts * mix;
  static constexpr int size = 6 * dim + hidden + 2 * mixes;
  bf16* at;
  __device__ LayerTold(bf16* told, int layer) : at(told + static_cast<Index>(layer) * size) {}
  __device__ bf16* qkv() const { return at; }
  __device__ bf16* h() const { return at + 3 * dim; }
  __device__ bf16* y() const { return at + 4 * dim; }
  __device__ bf16* mixed() const { return at + 5 * dim; }
  __device__ bf16* g() const { return at + 6 * dim; }
  __device__ float* mix_of(int head, int part) const {
    return reinterpret_cast<float*>(at + 6 * dim + hidden) + (head * tuning::ring_parts + part) * mix;
  }
};

/// The products of layer l.
template <int dim, int hidden, class W>
struct LayerProducts {
  ResidentProduct<dim, false, W> in, out;
  ResidentProduct<dim, true, W> up;
  ResidentProduct<hidden, false, W> down;
  __device__ LayerProducts(const LayersTask<W>& task, int l)
      : in{task.layers[l].in_proj, 3 * dim, task.layers[l].norm1, task.eps1},
        out{task.layers[l].out_proj, dim},
        up{task.layers[l].up, hidden, task.layers[l].norm2, task.eps2},
        down{task.layers[l].down, dim} {}
};

/// What a layer has to attend to: keys 0 to `filled` of its ring, of which its own is `slot`.
struct LayerKeys {
  int filled, slot;
};

template <int dim, int hidden, class W>
__global__ void __launch_bounds__(resident_threads + 32, 1)
    layers_kernel(const __grid_constant__ LayersTask<W> task) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  constexpr int D = 128, C = 2, n = 8 * C, heads = dim / D, most = tuning::ring_parts,
                warps = tuning::ring_threads / 32, pass = 4 * warps,
                stage_keys = LayersQueue::stage / (4 * D);
  static_assert(warps <= resident_warps && stage_keys % pass == 0);
  using Join = Mix<float, n>;
  using Told = LayerTold<dim, hidden>;
  __shared__ ResidentShared<LayersQueue, W> shared;
  __shared__ LayerKeys seen[most_layers];
  __shared__ float rotation[D];
  __shared__ __align__(16) bf16 own[3][D];  // q, k, v of the block's head
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  const int head = static_cast<int>(blockIdx.x) / most, part = static_cast<int>(blockIdx.x) % most;
  const bool on = active(task.mask, 0);
  const std::int64_t position = task.layers[0].position[0];
  if (tid == 0) shared.open();
  if (tid < task.n_layers) {
    const std::int64_t few = task.layers[tid].context[0];
    const std::int64_t context = few > 0 && few < task.context ? few : task.context;
    seen[tid] = {static_cast<int>(position + 1 < context ? position + 1 : context),
                 static_cast<int>(position % context)};
  }
  __syncthreads();
  // The keys of layer l that are this block's.
  const auto first_key = [&](int l) {
    const int filled = seen[l].filled;
    return filled * part >> ring_log_parts(filled);
  };
  const auto end_key = [&](int l) {
    const int filled = seen[l].filled, log_parts = ring_log_parts(filled);
    return head < heads && on && part < 1 << log_parts ? filled * (part + 1) >> log_parts : 0;
  };

  if (warp == resident_warps) {
    if (lane != 0) return;
    ResidentAsker<LayersQueue, W> queue(shared);
    for (int l = 0; l < task.n_layers; ++l) {
      const LayerTask<W>& layer = task.layers[l];
      const LayerProducts<dim, hidden, W> products(task, l);
      queue.ask(products.in);
      const int end = end_key(l);
      for (int key = first_key(l); key < end; key += stage_keys) {
        const int bytes = min(stage_keys, end - key) * D * 2;
        const Index at = (static_cast<Index>(head) * task.context + key) * D;
        queue.stage(2 * bytes, [&](std::uint32_t to, std::uint32_t barrier) {
          copy_bulk(to, layer.keys + at, bytes, barrier);
          copy_bulk(to + LayersQueue::stage / 2, layer.values + at, bytes, barrier);
        });
      }
      queue.ask(products.out);
      queue.ask(products.up);
      queue.ask(products.down);
    }
    return;
  }

  bf16* const row = reinterpret_cast<bf16*>(resident_memory + LayersQueue::stages * LayersQueue::stage);
  float* const parts = reinterpret_cast<float*>(row + std::max(hidden, 2 * dim));
  ResidentBlock<LayersQueue, W> block(shared, row, parts, task.arrived);
  if (tid < D / 2) RopeTable<float>{task.layers[0].position, rotation, 1, D / 2, 0, task.log_period, 1}(tid);

  // A number of the head's mixed row, of so many parts, once they are there.
  const auto join = [&](const Told& told, int count, int number) {
    std::uint32_t sums[most], of[most][2];  // of: a part's largest score and total
    bool lacks;
    do {
      lacks = false;
#pragma unroll
      for (int p = 0; p < most; ++p) {
        const float* const from = told.mix_of(head, min(p, count - 1));
        read_told(from + number, sums[p]), read_told(from + D, of[p]);
      }
#pragma unroll
      for (int p = 0; p < most; ++p)
        lacks |= lacks_word(sums[p]) || lacks_word(of[p][0]) || lacks_word(of[p][1]);
    } while (lacks);
    float top = -INFINITY, total = 0, sum = 0;
#pragma unroll
    for (int p = 0; p < most; ++p) {
      top = top < __uint_as_float(of[p][0]) ? __uint_as_float(of[p][0]) : top;
    }
#pragma unroll
    for (int p = 0; p < most; ++p) {
      if (p >= count) continue;
      const float weight = exp2_of(__uint_as_float(of[p][0]) - exp2_shift(top));
      total += weight * __uint_as_float(of[p][1]);
      sum += weight * __uint_as_float(sums[p]);
    }
    return sum / total;
  };
  // Scores and mixes the block's part of a head's keys, and its part of their joint mix.
  const auto attend = [&](int l) {
    const LayerTask<W>& layer = task.layers[l];
    const Told told(task.told, l);
    const int end = end_key(l), slot = seen[l].slot, sub = lane % 8, group = lane / 8;
    block.await_others();
    if (tid < 3 * D / 2 && end > 0) {
      const int which = tid / (D / 2), pair = tid % (D / 2);
      std::uint32_t raw;
      do read_told(told.qkv() + which * dim + head * D + 2 * pair, raw);
      while (lacks_half(raw));
      RopePair<bf16> two = reinterpret_cast<const RopePair<bf16>&>(raw);
      if (which < 2) two = turned(two, rotation[pair], rotation[D / 2 + pair]);
      reinterpret_cast<RopePair<bf16>*>(own[which])[pair] = two;
    }
    block.sync();
    if (end > 0 && part == 0 && tid < D / 4) {
      bf16* const ring = tid < D / 8 ? layer.keys : layer.values;
      reinterpret_cast<uint4*>(ring + (static_cast<Index>(head) * task.context + slot) * D)[tid % (D / 8)] =
          reinterpret_cast<const uint4*>(own[1])[tid];
    }
    float q[n];
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const uint4 raw = reinterpret_cast<const uint4*>(own[0])[c * 8 + sub];
#pragma unroll
      for (int i = 0; i < 8; ++i)
        q[c * 8 + i] = from_chunk<bf16>(raw, i) * (1.4426950408889634f / sqrt(static_cast<float>(D)));
    }
    Join mix;
    for (int key = first_key(l); key < end; key += stage_keys) {
      block.stage([&](const unsigned char* stage) {
        if (warp >= warps) return;
#pragma unroll 1
        for (int at = warp * 4; at < min(stage_keys, end - key); at += pass) {
          const int k = at + group;
          const bool valid = key + k < end, other = valid && key + k != slot;
          const auto* mine = reinterpret_cast<const unsigned char*>(own[1]) + sub * 16;
          const unsigned char* theirs = stage + k * D * 2 + sub * 16;
          mix.template take<bf16, C>(q, other ? theirs : mine,
                                     other ? theirs + LayersQueue::stage / 2 : mine + D * 2, 128, valid);
        }
      });
    }
    if (warp < warps) {
      mix.join_lane(8);
      mix.join_lane(16);
      float* const to = parts + warp * (D + 2);
      if (group == 0) {
#pragma unroll
        for (int i = 0; i < n; ++i) to[(i / 8 * 8 + sub) * 8 + i % 8] = mix.sum[i];
        if (sub == 0) to[D] = mix.largest, to[D + 1] = mix.total;
      }
    }
    block.sync();
    if (end > 0 && tid < D) {
      float* const to = told.mix_of(head, part);
      float top, total;
      tell(to + tid, join_mixes<D, warps>(parts, warps, top, total));
      if (tid == 0) tell(to + D, top), tell(to + D + 1, total);
    }
    block.arrive();
    // A part of the head's mixed row, once the other parts are there.
    if (head < heads && tid < D / most) {
      const int number = part * (D / most) + tid;
      tell(told.mixed() + head * D + number,
           on ? static_cast<bf16>(join(told, 1 << ring_log_parts(seen[l].filled), number)) : bf16(0.0f));
    }
  };

  // A thread keeps its column of the rows that products are added to.
  const OwnColumns columns(dim);
  float kept = tid < columns.count ? wide(task.x[columns.first + tid]) : 0.0f;
  const auto add = [&](bf16* to) {
    return [&kept, to](int column, const float* total) {
      const bf16 sum = static_cast<bf16>(total[0] + kept);
      tell(to + column, sum);
      kept = wide(sum);
    };
  };
  block.look_ahead(LayerProducts<dim, hidden, W>(task, 0).in);
#pragma unroll 1
  for (int l = 0; l < task.n_layers; ++l) {
    const Told told(task.told, l);
    const LayerProducts<dim, hidden, W> products(task, l);
    block.product(
        products.in,
        [&] {
          if (l == 0) {
            block.template fetch_given<dim>(task.x);
          } else {
            block.template fetch_told<dim>(Told(task.told, l - 1).y());
          }
        },
        [&] { block.look_ahead(products.out); },
        [&](int column, const float* total) { tell(told.qkv() + column, static_cast<bf16>(total[0])); });
    attend(l);
    block.product(
        products.out, [&] { block.template fetch_told<dim>(told.mixed()); },
        [&] { block.look_ahead(products.up); }, add(told.h()));
    block.product(
        products.up, [&] { block.template fetch_told<dim>(told.h()); },
        [&] { block.look_ahead(products.down); },
        [&](int column, const float* total) {
          tell(told.g() + column, static_cast<bf16>(Silu::f(total[0]) * total[1]));
        });
    block.product(
        products.down, [&] { block.template fetch_told<hidden>(told.g()); },
        [&] {
          if (l + 1 < task.n_layers) block.look_ahead(LayerProducts<dim, hidden, W>(task, l + 1).in);
        },
        add(told.y()));
  }
  if (tid < columns.count) task.y[columns.first + tid] = static_cast<bf16>(kept);
  if (block.leave() && on) {  // all have read the positions
    for (int l = 0; l < task.n_layers; ++l) *task.layers[l].position = position + 1;
  }
#endif
}

/// False, and nothing done, for what the kernel does not take. `counts` are two zeros that nothing else writes.
template <int dim, int hidden, class B, class Step>
bool layers_step(B& be, const Launcher& launch, int capability, int processors, unsigned* counts,
                 const Step& step) {
  using W = FormatOf<decltype(step.layers[0].in_proj)>;
  constexpr Index D = 128, heads = dim / D;
  if (capability < 90 || step.layers.size() > most_layers || heads * tuning::ring_parts > processors ||
      dim < processors || step.context > INT_MAX / 16 ||
      (3 * dim + processors - 1) / processors > resident_threads ||
      (hidden + processors - 1) / processors > resident_threads || !copies_in_chunks(2, {}, step.x))
    return false;
  const auto scope = be.scope();
  LayersTask<W> task{};
  task.x = step.x, task.y = step.y, task.mask = step.mask;
  const Index told = LayerTold<dim, hidden>::size * static_cast<Index>(step.layers.size());
  task.told = be.template make<bf16, dyn>(told).data();
  task.arrived = counts;
  task.n_layers = static_cast<int>(step.layers.size());
  task.context = static_cast<int>(step.context);
  task.log_period = std::log(step.max_period);
  for (std::size_t l = 0; l < step.layers.size(); ++l) {
    const auto& layer = step.layers[l];
    if (!streams(layer.in_proj) || !streams(layer.out_proj) || !streams(layer.up) || !streams(layer.down) ||
        !copies_in_chunks(2, {}, layer.norm1.weight, layer.norm2.weight, layer.keys, layer.values))
      return false;
    task.layers[l] = {layer.norm1.weight,
                      layer.norm2.weight,
                      weight_rows(layer.in_proj),
                      weight_rows(layer.out_proj),
                      weight_rows(layer.up),
                      weight_rows(layer.down),
                      layer.keys,
                      layer.values,
                      layer.position,
                      layer.context};
    task.eps1 = static_cast<float>(layer.norm1.eps), task.eps2 = static_cast<float>(layer.norm2.eps);
  }
  const Index parts = std::max({resident_parts<LayersQueue, dim, false, W>(3 * dim, processors),
                                resident_parts<LayersQueue, dim, true, W>(hidden, processors),
                                resident_parts<LayersQueue, hidden, false, W>(dim, processors),
                                tuning::ring_threads / 32 * (D + 2)});
  const Index shared =
      Index{LayersQueue::stages} * LayersQueue::stage + 2 * std::max(hidden, 2 * dim) + 4 * parts;
  if (shared > 224 << 10) return false;
  const auto kernel = layers_kernel<dim, hidden, W>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "asking for shared memory");
  be.fill(reinterpret_cast<std::uint8_t*>(task.told), 2 * told, untold);
  launch.together("a step of all layers", kernel, static_cast<unsigned>(processors), resident_threads + 32,
                  shared, task);
  return true;
}

}  // namespace mttt::detail
