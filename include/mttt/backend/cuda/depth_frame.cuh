// A frame of the depformer for one session, from the temporal transformer's row to its drawn codes, in one
// kernel: the blocks of resident.cuh go through the products of all steps. Each block attends to the frame's
// earlier steps for itself, a warp a head, and draws each code for itself: both are little, to tell takes longer.
//
// Formula: those of lm/depformer.hpp and lm/sampler.hpp; each sum in the order of the kernels that take several
//          sessions, so that their bits are the same.
// Shapes:  z (in_dim), logits (steps, card), codes (1 + steps), the text's first; weights of the input (dim,
//          in_dim), of layers as in layers_step.cuh, of the logits (card, dim).
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
using DepthQueue = ResidentQueueShape<tuning::depth_stage, tuning::depth_stages, tuning::depth_under_way>;

template <class W>
struct DepthLayerTask {
  WeightRows<W> in_proj, out_proj, up, down;
};
template <class W>
struct DepthStepTask {
  DepthLayerTask<W> layers[most_depth_layers];
  WeightRows<W> in, linear;
  const bf16* embedding;
  int embedding_card;
};
template <class W, class Draw>
struct DepthTask {
  DepthStepTask<W> steps[most_depth_steps];
  const bf16 *norm1[most_depth_layers], *norm2[most_depth_layers];
  const bf16* z;
  std::int32_t* codes;
  const std::int32_t* forced;
  std::int32_t unforced;
  bf16 *told, *logits;
  unsigned* arrived;
  int n_steps, n_layers;
  float eps1, eps2;
  Draw draw;
};

/// The products of layer l in step k.
template <int dim, int hidden, class W>
struct DepthProducts {
  ResidentProduct<dim, false, W> in, out;
  ResidentProduct<dim, true, W> up;
  ResidentProduct<hidden, false, W> down;
  __device__ DepthProducts(const auto& task, int k, int l)
      : in{task.steps[k].layers[l].in_proj, 3 * dim, task.norm1[l], task.eps1},
        out{task.steps[k].layers[l].out_proj, dim},
        up{task.steps[k].layers[l].up, hidden, task.norm2[l], task.eps2},
        down{task.steps[k].layers[l].down, dim} {}
};

/// What blocks tell each other in a step: the row of the first layer, in each layer qkv, h, y, g, then logits.
template <int dim, int hidden, int card>
struct DepthTold {
  static constexpr int layer = 5 * dim + hidden;
  MTTT_HD static constexpr Index size(int layers) { return dim + Index{layer} * layers + card; }
  /// Room for the longest row, for one with its norm, for logits with candidates.
  static constexpr int row(int in_dim) { return std::max({in_dim, hidden, 2 * dim, 2 * card}); }
};

/// Head `warp` of step k, whose qkv blocks tell, against the steps before, each `step` numbers ahead of the next,
/// to 64 numbers of `mixed`; as DepthAttend does it with a team of 64. `await` waits for the others.
template <int dim, class Await>
__device__ __forceinline__ void attend_few(const bf16* qkv, int k, Index step, bf16* mixed,
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
    const bf16* const at = qkv - (k - j) * step + head * D + lane;
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // this lane has seen them before
      std::uint16_t key, value;
      read_told(at + dim + 32 * half, key), read_told(at + 2 * dim + 32 * half, value);
      keys[j][half] = number(key), values[j][half] = number(value);
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
        read_told(qkv + i / 2 * dim + head * D + lane + i % 2 * 32, raw[i / 2][i % 2]);
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

/// For the draw of a code.
struct DrawShared {
  uint2 counts[2][resident_warps];
  double scores[resident_warps];
  int codes[resident_warps], candidates;
};

/// The edge of the top_k places, the largest that as many reach: two bits at a time, by all threads that multiply.
template <int card, class Block, class Draw, int n>
__device__ std::uint64_t draw_edge(const Block& block, const Draw& draw, const std::uint64_t (&place)[n],
                                   DrawShared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto wanted = static_cast<unsigned>(draw.top_k);
  std::uint64_t edge = 0;
  int turn = 0;
#pragma unroll 1
  for (int low = 30 + Draw::key_bits; low >= 0; low -= 2) {
    if (low < 32 && (card - 1) >> low == 0) continue;
    const std::uint64_t digit = std::uint64_t{1} << low;
    uint2 reach{0, 0};  // of digits 1 and 2, of 3
#pragma unroll
    for (int i = 0; i < n; ++i) {
      reach.x += (place[i] >= edge + digit) + ((place[i] >= edge + 2 * digit) << 16);
      reach.y += place[i] >= edge + 3 * digit;
    }
    reach = {__reduce_add_sync(0xffffffffu, reach.x), __reduce_add_sync(0xffffffffu, reach.y)};
    uint2* const counts = shared.counts[turn ^= 1];
    if (lane == 0) counts[warp] = reach;
    block.sync();
    reach = {0, 0};
#pragma unroll
    for (int w = 0; w < resident_warps; ++w) reach.x += counts[w].x, reach.y += counts[w].y;
    const unsigned of[] = {reach.x & 0xffff, reach.x >> 16, reach.y};
    const int found = (of[0] >= wanted) + (of[1] >= wanted) + (of[2] >= wanted);
    edge += found * digit;
    if (of[0] == wanted || of[1] == wanted || of[2] == wanted) break;
  }
  return edge;
}

/// What `draw` takes of `card` logits in shared memory, behind which there is room for as many; by all threads
/// that multiply, who come from a sync.
template <int card, class Block, class Draw>
__device__ int draw_code(const Block& block, const Draw& draw, bf16* logits, DrawShared& shared) {
  static_assert(card < 1 << 16);
  constexpr int n = (card + resident_threads - 1) / resident_threads;
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  if (tid == 0) shared.candidates = 0;
  std::uint64_t place[n];
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int at = tid + i * resident_threads;
    place[i] = at < card ? draw.place(logits, at) : 0;
  }
  block.sync();
  const bool all = draw.greedy() || draw.top_k == 0;
  const std::uint64_t edge = all ? 0 : draw_edge<card>(block, draw, place, shared);
  auto* const candidates = reinterpret_cast<std::uint16_t*>(logits + card);  // in any order
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int at = tid + i * resident_threads;
    if (at < card && place[i] >= edge)
      candidates[atomicAdd(&shared.candidates, 1)] = static_cast<std::uint16_t>(at);
  }
  block.sync();
  double best = -INFINITY;
  int code = card;
  const auto take = [&](double score, int at) {
    if (score > best || (score == best && at < code)) best = score, code = at;
  };
#pragma unroll 1
  for (int i = tid; i < shared.candidates; i += resident_threads) {
    const int at = candidates[i];
    take(draw.greedy() ? static_cast<double>(wide(logits[at])) : draw.score(logits, 0, at), at);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    take(__shfl_xor_sync(0xffffffffu, best, distance), __shfl_xor_sync(0xffffffffu, code, distance));
  if (lane == 0) shared.scores[warp] = best, shared.codes[warp] = code;
  block.sync();
#pragma unroll
  for (int w = 0; w < resident_warps; ++w) take(shared.scores[w], shared.codes[w]);
  return min(code, card - 1);
}

template <int in_dim, int dim, int hidden, int card, class W, class Draw>
__global__ void __launch_bounds__(resident_threads + 32, 1)
    depth_kernel(const __grid_constant__ DepthTask<W, Draw> task) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  using Products = DepthProducts<dim, hidden, W>;
  using Told = DepthTold<dim, hidden, card>;
  __shared__ ResidentShared<DepthQueue, W> shared;
  __shared__ DrawShared drawing;
  const int tid = threadIdx.x;
  const auto input = [&](int k) { return ResidentProduct<in_dim, false, W>{task.steps[k].in, dim}; };
  const auto output = [&](int k) { return ResidentProduct<dim, false, W>{task.steps[k].linear, card}; };
  if (tid == 0) shared.open();
  __syncthreads();
  if (tid >= resident_threads) {
    if (tid != resident_threads) return;
    ResidentAsker<DepthQueue, W> queue(shared);
    for (int k = 0; k < task.n_steps; ++k) {
      queue.ask(input(k));
      for (int l = 0; l < task.n_layers; ++l) {
        const Products products(task, k, l);
        queue.ask(products.in);
        queue.ask(products.out);
        queue.ask(products.up);
        queue.ask(products.down);
      }
      queue.ask(output(k));
    }
    return;
  }

  constexpr int longest_row = DepthTold<dim, hidden, card>::row(in_dim);
  bf16* const row = reinterpret_cast<bf16*>(resident_memory + DepthQueue::stages * DepthQueue::stage);
  ResidentBlock<DepthQueue, W> block(shared, row, reinterpret_cast<float*>(row + longest_row), task.arrived);
  const Index told_size = Told::size(task.n_layers);
  const auto logits = [&](int k) { return task.told + (k + 1) * told_size - card; };
  // The code that follows step k.
  const auto drawn = [&](int k) {
    block.template fetch_told<card>(logits(k));
    Draw draw = task.draw;
    draw.stream += k;
    int code = draw_code<card>(block, draw, row, drawing);
    if (task.forced != nullptr && task.forced[1 + k] != task.unforced) code = task.forced[1 + k];
    if (blockIdx.x == 0 && tid == 0) task.codes[1 + k] = code;
    return code;
  };
  // A thread keeps its column of the rows that products are added to.
  const OwnColumns columns(dim);
  const bool has_column = tid < columns.count;
  float kept = 0;
  const auto add = [&](bf16* to) {
    return [&kept, to](int column, const float* total) {
      const bf16 sum = static_cast<bf16>(total[0] + kept);
      tell(to + column, sum);
      kept = wide(sum);
    };
  };
  block.look_ahead(input(0));
#pragma unroll 1
  for (int k = 0; k < task.n_steps; ++k) {
    const DepthStepTask<W>& step = task.steps[k];
    bf16* x = task.told + k * told_size;
    block.product(
        input(k), [&] { block.template fetch_given<in_dim>(task.z); }, [] {},
        [&](int, const float* total) { kept = wide(static_cast<bf16>(total[0])); });
    const int code = k == 0 ? task.codes[0] : drawn(k - 1);
    block.look_ahead(Products(task, k, 0).in);
    if (has_column) {
      if (code >= 0 && code < step.embedding_card)
        kept += wide(step.embedding[static_cast<Index>(code) * dim + columns.first + tid]);
      tell(x + columns.first + tid, static_cast<bf16>(kept));
      kept = wide(static_cast<bf16>(kept));
    }
    bf16* told = x + dim;
#pragma unroll 1
    for (int l = 0; l < task.n_layers; ++l, told += Told::layer) {
      const Products products(task, k, l);
      bf16 *const qkv = told, *const h = told + 3 * dim, *const y = told + 4 * dim, *const g = told + 5 * dim;
      block.product(
          products.in, [&] { block.template fetch_told<dim>(x); }, [&] { block.look_ahead(products.out); },
          [&](int column, const float* total) { tell(qkv + column, static_cast<bf16>(total[0])); });
      block.product(
          products.out,
          [&] {
            attend_few<dim>(qkv, k, told_size, row, [&] { block.await_others(); });
            block.sync();
          },
          [&] { block.look_ahead(products.up); }, add(h));
      block.product(
          products.up, [&] { block.template fetch_told<dim>(h); }, [&] { block.look_ahead(products.down); },
          [&](int column, const float* total) {
            tell(g + column, static_cast<bf16>(Silu::f(total[0]) * total[1]));
          });
      block.product(
          products.down, [&] { block.template fetch_told<hidden>(g); },
          [&] {
            if (l + 1 < task.n_layers) {
              block.look_ahead(Products(task, k, l + 1).in);
            } else {
              block.look_ahead(output(k));
            }
          },
          add(y));
      x = y;
    }
    block.product(
        output(k), [&] { block.template fetch_told<dim>(x); },
        [&] {
          if (k + 1 < task.n_steps) block.look_ahead(input(k + 1));
        },
        [&](int column, const float* total) {
          const bf16 logit = static_cast<bf16>(total[0]);
          tell(logits(k) + column, logit);
          if (task.logits != nullptr) task.logits[k * card + column] = logit;
        });
  }
  if (blockIdx.x == 0) drawn(task.n_steps - 1);
  block.leave();
#endif
}

/// False, and nothing done, for what the kernel does not take. `counts` are two zeros that nothing else writes.
template <int in_dim, int dim, int hidden, int card, class B, class Frame>
bool depth_frame(B& be, const Launcher& launch, int capability, int processors, unsigned* counts,
                 const Frame& frame) {
  using W = FormatOf<decltype(frame.steps[0].in)>;
  const auto columns = [&](Index cols) { return (cols + processors - 1) / processors; };
  if (capability < 90 || frame.norms.size() > most_depth_layers || frame.steps.size() > most_depth_steps ||
      dim < processors || card < processors || dim / 64 > resident_warps ||
      std::max({columns(3 * dim), columns(hidden), columns(card)}) > resident_threads ||
      !copies_in_chunks(2, {}, frame.z))
    return false;
  const auto scope = be.scope();
  using Draw = std::remove_cvref_t<decltype(frame.draw)>;
  DepthTask<W, Draw> task{};
  task.z = frame.z, task.codes = frame.codes, task.forced = frame.forced, task.unforced = frame.unforced;
  task.logits = frame.logits, task.draw = frame.draw;
  task.arrived = counts;
  task.n_steps = static_cast<int>(frame.steps.size()), task.n_layers = static_cast<int>(frame.norms.size());
  const Index told = DepthTold<dim, hidden, card>::size(task.n_layers) * task.n_steps;
  task.told = be.template make<bf16, dyn>(told).data();
  for (std::size_t l = 0; l < frame.norms.size(); ++l) {
    const auto& [norm1, norm2] = frame.norms[l];
    if (!copies_in_chunks(2, {}, norm1.weight, norm2.weight)) return false;
    task.norm1[l] = norm1.weight, task.norm2[l] = norm2.weight;
    task.eps1 = static_cast<float>(norm1.eps), task.eps2 = static_cast<float>(norm2.eps);
  }
  for (std::size_t k = 0; k < frame.steps.size(); ++k) {
    const auto& step = frame.steps[k];
    auto& to = task.steps[k];
    if (!streams(step.in) || !streams(step.linear)) return false;
    to.in = weight_rows(step.in), to.linear = weight_rows(step.linear);
    to.embedding = step.embedding, to.embedding_card = static_cast<int>(step.embedding_card);
    for (std::size_t l = 0; l < step.layers_of.size(); ++l) {
      const auto& layer = step.layers_of[l];
      if (!streams(layer.in_proj) || !streams(layer.out_proj) || !streams(layer.up) || !streams(layer.down))
        return false;
      to.layers[l] = {weight_rows(layer.in_proj), weight_rows(layer.out_proj), weight_rows(layer.up),
                      weight_rows(layer.down)};
    }
  }
  const Index parts = std::max({resident_parts<DepthQueue, in_dim, false, W>(dim, processors),
                                resident_parts<DepthQueue, dim, false, W>(3 * dim, processors),
                                resident_parts<DepthQueue, dim, true, W>(hidden, processors),
                                resident_parts<DepthQueue, hidden, false, W>(dim, processors),
                                resident_parts<DepthQueue, dim, false, W>(card, processors)});
  const Index shared = Index{DepthQueue::stages} * DepthQueue::stage +
                       2 * DepthTold<dim, hidden, card>::row(in_dim) + 4 * parts;
  if (shared > 224 << 10) return false;
  const auto kernel = depth_kernel<in_dim, dim, hidden, card, W, Draw>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "asking for shared memory");
  be.fill(reinterpret_cast<std::uint8_t*>(task.told), 2 * told, untold);
  launch.together("a frame of the depformer", kernel, static_cast<unsigned>(processors),
                  resident_threads + 32, shared, task);
  return true;
}

}  // namespace mttt::detail
