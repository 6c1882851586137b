// Training of moshi_1b with TTT on several GPUs, in bf16: mpirun -n 2 bench_cuda_train_1b_ranks [segments a GPU].
//
// Frames and tokens (9 a frame) a second of all GPUs together, and the memory of each, for each Sharding; sums beside
// the backward pass or after it; what the sums alone take; and how far the gradient of the ranks' shares is from that of
// one rank with all rows. Each starts anew: with two GPUs the losses after as many steps are the same.
//
// Seen on two H200 (NVLink, NCCL 2.28), 64 segments of 256 frames each: one GPU 282.2 ms a step; two, and GB of
// parameters, gradients and moments on each: none 299.8 ms, 25.53; optimizer 295.5, 17.02; gradients 298.1, 14.99; full
// 299.5, 13.97. Optimizer, sums beside backward and after it: at 720 GB/s 295.5 and 292.1 ms, they take processors from
// the products; with NCCL_MAX_CTAS=8, at 265 GB/s, 303.9 and 309.4; with 2, at 68 GB/s, as between machines, 339.9
// and 401.9.
#include "mttt/backend/cuda/nccl.cuh"
#include "mttt/presets/moshi_1b.hpp"
#include "train.cuh"

namespace {
using namespace mttt;
constexpr MoshiConfig C = presets::moshi_1b;
constexpr Index frames = 256;
using B = Cuda<bf16>;
using Model = Moshi<C, B>;
using P = typename Model::Params;
using M = typename Moshi<C, Cuda<float>>::Params;
using Training = Trainer<P, B, M, NcclRanks>;

Streams<std::int32_t> draw_codes(B& be, Index from, Index batch) {
  std::vector<std::int32_t> drawn;
  for (Index i = 0; i < batch * C.streams() * frames; ++i) {
    Rng rng(5, static_cast<std::uint64_t>(from * C.streams() * frames + i) * 16);
    drawn.push_back(static_cast<std::int32_t>(
        rng.below(static_cast<std::uint64_t>(i / frames % C.streams() == 0 ? C.text_card : C.card))));
  }
  const auto codes = be.template make<std::int32_t, dyn, dyn, dyn>(batch, C.streams(), frames);
  be.to_device(drawn.data(), codes.data(), codes.size());
  return codes;
}

/// On this GPU, beside activations.
double gigabytes(B& be) { return 1e-9 * static_cast<double>(CudaMemory::held() - be.arena_bytes()); }

/// The longest of the ranks' means: they wait for each other.
template <class F>
double slowest_ms(B& be, const MpiRanks& mpi, int runs, const F& f) {
  mpi.barrier();
  const double mine = bench::mean_ms(be, runs, f);
  double longest = mine;
  MPI_Allreduce(&mine, &longest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return longest;
}

void measure_steps(B& be, const MpiRanks& mpi, const NcclRanks& ranks, Index batch, Sharding sharding,
                   bool beside) {
  const double before = gigabytes(be);
  Store<P, B> params(be);
  bench::draw_start<C>(be, *params);
  TrainOptions options{.max_steps = 1000, .lr = 1e-4, .sharding = sharding};
  if (!beside) options.bucket = Index{1} << 60;
  Training trainer(be, params, options, {}, ranks);
  const auto scope = be.scope();
  const auto codes = draw_codes(be, ranks.rank() * batch, batch);
  MoshiSegment<Model> segment;
  segment.hooks = trainer.hooks();
  double loss = 0;
  const auto step = [&] {
    loss = trainer
               .step([&](std::int64_t, M& grad) {
                 const auto share = moshi_loss<Model>(be, *params, codes, {}, &grad, segment, ranks);
                 return MicroBatch{share.total(), batch * frames};
               })
               .loss;
  };
  step(), step();
  const double ms = slowest_ms(be, mpi, 5, step);
  const double kept = gigabytes(be) - before;
  if (ranks.rank() == 0) {
    const double speed = 1e3 * static_cast<double>(batch * frames * ranks.size()) / ms;
    std::printf(
        "  %d GPU, %td x %td frames each, %s, sums %s: %.0f frames/s, %.0f tokens/s, %.2f ms a step, loss "
        "%.9g; "
        "%.2f GB of parameters, gradients and moments, %.2f of activations\n",
        ranks.size(), batch, frames, name_of(sharding).c_str(), beside ? "beside backward" : "after it",
        speed, speed * C.spoken_streams(), ms, loss, kept, 1e-9 * static_cast<double>(be.arena_bytes()));
    std::fflush(stdout);
  }
}

void measure_sums(B& be, const MpiRanks& mpi, const NcclRanks& ranks) {
  Store<M, B> grad(be);
  const Index n = grad.bytes() / 4;
  float* const x = grad.flat<float>().data();
  const RankParts parts = even_parts(n, ranks.size());
  const auto report = [&](const char* what, double bytes, const auto& f) {
    f();
    const double ms = slowest_ms(be, mpi, 10, f);
    if (ranks.rank() == 0) std::printf("  %s: %.2f ms, %.0f GB/s\n", what, ms, 1e-6 * bytes / ms);
  };
  const double bytes = static_cast<double>(grad.bytes());
  report("all_reduce_sum of the gradient", bytes, [&] { ranks.all_reduce_sum(be, x, n), ranks.wait(be); });
  report("reduce_scatter of the gradient", bytes,
         [&] { ranks.reduce_scatter(be, x, x, parts), ranks.wait(be); });
  report("all_gather of the weights in bf16", bytes / 2, [&] {
    auto* const weights = reinterpret_cast<bf16*>(x);
    ranks.all_gather(be, weights, weights, parts), ranks.wait(be);
  });
}

/// |sum of the ranks' gradients - gradient of one| / |gradient of one|, 8 segments, over an eighth of the weights.
void compare_gradients(B& be, const MpiRanks& mpi, const NcclRanks& ranks) {
  const auto scope = be.scope();
  Store<P, B> params(be);
  bench::draw_start<C>(be, *params);
  if (ranks.rank() == 0) {
    const auto million = 1e-6 * static_cast<double>(count_elements(*params));
    std::printf("moshi_1b, %.1f M parameters, %d GPU\n", million, ranks.size());
  }
  const RankPart own = even_parts(8, ranks.size())[static_cast<std::size_t>(ranks.rank())];
  Store<M, B> whole(be), shares(be);
  moshi_loss<Model>(be, *params, draw_codes(be, 0, 8), {}, &*whole);
  moshi_loss<Model>(be, *params, draw_codes(be, own.from, own.count), {}, &*shares, {}, ranks);
  ranks.all_reduce_sum(be, shares.flat<float>().data(), shares.bytes() / 4);
  ranks.wait(be);
  if (ranks.rank() != 0) return;
  const Index some = Index{1} << 20, n = whole.bytes() / 4;  // of every eight million, one: a host takes long
  std::vector<float> a(static_cast<std::size_t>(some)), b(a.size());
  double difference = 0, norm = 0;
  for (Index at = 0; at + some <= n; at += 8 * some) {
    be.to_host(whole.flat<float>().data() + at, a.data(), some);
    be.to_host(shares.flat<float>().data() + at, b.data(), some);
    for (std::size_t i = 0; i < a.size(); ++i) {
      const double apart = double{b[i]} - double{a[i]};
      difference += apart * apart;
      norm += double{a[i]} * double{a[i]};
    }
  }
  std::printf("  gradient of %d ranks against one: |difference| / |gradient| = %.2e, |gradient| %.4f\n",
              mpi.size(), std::sqrt(difference / norm), std::sqrt(norm));
}
}  // namespace

int main(int argc, char** argv) {
  const MpiSession session;
  const int status = bench::guarded([&] {
    if (!MpiSession::running()) MPI_Init(nullptr, nullptr);  // one GPU, without mpirun
    const MpiRanks mpi;
    B be(device_of(mpi));
    const NcclRanks ranks(be);
    const Index batch = argc > 1 ? std::atoi(argv[1]) : 64;
    if (ranks.size() == 1) return measure_steps(be, mpi, ranks, batch, Sharding::none, true);
    compare_gradients(be, mpi, ranks);
    measure_sums(be, mpi, ranks);
    for (const auto sharding : {Sharding::none, Sharding::optimizer, Sharding::gradients, Sharding::full})
      measure_steps(be, mpi, ranks, batch, sharding, true);
    measure_steps(be, mpi, ranks, batch, Sharding::optimizer, false);
  });
  if (status != 0) session.abort(status);
  return status;
}
