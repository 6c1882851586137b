// Two GPUs that train one model over NCCL, against one GPU and against the CPU. `mpirun -n 2` runs it; on a machine of
// one GPU it says so and passes.
#include "mttt/backend/cuda/nccl.cuh"
#include "train_small.cuh"

namespace {
using namespace mttt;
using namespace mttt::testing;

const MpiRanks& processes() {
  static const MpiSession session;
  static const MpiRanks ranks;
  return ranks;
}

int gpus() {
  int count = 0;
  cudaGetDeviceCount(&count);
  return count;
}

/// Stands in every test: a rank that throws ends both, rather than leave the other waiting.
struct EndAll {
  int before = std::uncaught_exceptions();
  EndAll() { REQUIRE(processes().size() == 2); }
  ~EndAll() {
    if (std::uncaught_exceptions() > before) MPI_Abort(MPI_COMM_WORLD, 1);
  }
};

/// Three steps of train_small; each rank has its sessions of the batch.
template <class T, class R>
struct Shared {
  using B = Cuda<T>;
  using Model = Moshi<train_small, B>;
  using P = typename Model::Params;
  using M = typename Moshi<train_small, Cuda<Wide<T>>>::Params;
  B& be;
  const R ranks;
  Store<P, B> params{be};
  Trainer<P, B, M, R> trainer;

  Shared(B& backend, const R& all, const TrainOptions& options)
      : be(backend), ranks(all), trainer(be, start(), options, {}, all) {}
  Store<P, B>& start() {
    Cpu<T> cpu;
    Store<typename Moshi<train_small, Cpu<T>>::Params, Cpu<T>> drawn(cpu);
    Rng rng(3);
    Moshi<train_small, Cpu<T>>::init(*drawn, rng);
    upload(be, drawn, params);
    return params;
  }
  std::vector<double> steps(int n) {
    const auto scope = be.scope();
    const auto all = train_codes();
    const RankPart own = even_parts(train_batch, ranks.size())[static_cast<std::size_t>(ranks.rank())];
    const Index each = train_small.streams() * train_steps;
    const auto codes =
        be.template make<std::int32_t, dyn, dyn, dyn>(own.count, train_small.streams(), train_steps);
    be.to_device(all.data() + own.from * each, codes.data(), codes.size());
    MoshiSegment<Model> segment;
    segment.hooks = trainer.hooks();
    std::vector<double> numbers;
    for (int i = 0; i < n; ++i) {
      const auto report = trainer.step([&](std::int64_t, M& grad) {
        const auto loss = moshi_loss<Model>(be, *params, codes, {}, &grad, segment, ranks);
        return MicroBatch{loss.total(), own.count * train_steps};
      });
      numbers.push_back(report.loss), numbers.push_back(report.gradient_norm);
    }
    return numbers;
  }
  template <class S>
  std::vector<float> host(const S& store) {
    std::vector<float> all(static_cast<std::size_t>(store.bytes()) / 4);
    be.to_host(reinterpret_cast<const float*>(store.data()), all.data(), static_cast<Index>(all.size()));
    return all;
  }
};

double relative(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(double{a[i]} - double{b[i]}, 2);
    norm += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(difference / norm);
}
}  // namespace

TEST_CASE("NCCL: two GPUs with half of the batch each give the gradients of one, and of the CPU") {
  const EndAll end;
  if (gpus() < 2) {
    WARN("one GPU: nothing was tested");
    return;
  }
  Cuda<float> be(device_of(processes()));
  const NcclRanks ranks(be);
  TrainOptions options{.max_steps = 4, .lr = 1e-3};
  options.sharding = Sharding::none;
  Shared<float, OneRank> one(be, {}, options);
  Shared<float, NcclRanks> two(be, ranks, options);
  const auto expected = one.steps(1), got = two.steps(1);
  CHECK(got[0] == Approx(expected[0]).epsilon(1e-6));
  CHECK(got[1] == Approx(expected[1]).epsilon(1e-5));
  const auto gradient = two.host(two.trainer.grad);
  CHECK(relative(gradient, one.host(one.trainer.grad)) < 1e-5);  // float32, other sums over rows

  Training<Cpu<float>> cpu(options);
  const auto on_cpu = cpu.losses(1);
  CHECK(got[0] == Approx(on_cpu[0]).epsilon(1e-5));
  std::vector<float> reference(gradient.size());
  std::memcpy(reference.data(), cpu.trainer.grad.data(), 4 * reference.size());
  const double distance = relative(gradient, reference);
  INFO(distance);
  CHECK(distance < 1e-4);
}

TEMPLATE_TEST_CASE("NCCL: shared out or not, sums beside the backward pass or after it: the same bits", "",
                   float, bf16) {
  const EndAll end;
  if (gpus() < 2) {
    WARN("one GPU: nothing was tested");
    return;
  }
  Cuda<TestType> be(device_of(processes()));
  const NcclRanks ranks(be);
  using Two = Shared<TestType, NcclRanks>;
  std::vector<double> numbers;
  std::vector<float> weights;
  for (const auto sharding : {Sharding::none, Sharding::optimizer, Sharding::gradients, Sharding::full}) {
    for (const Index bucket : {Index{1}, Index{1} << 40}) {
      const TrainOptions options{.max_steps = 6, .lr = 1e-3, .sharding = sharding, .bucket = bucket};
      INFO(name_of(sharding));
      Two training(be, ranks, options);
      const auto losses = training.steps(4);
      CHECK(training.trainer.grad.whole() == (sharding <= Sharding::optimizer));
      CHECK(training.params.whole() == (sharding != Sharding::full));
      const auto all = training.trainer.read_weights([&](const auto& w) { return training.host(w); });
      if (weights.empty()) numbers = losses, weights = all;
      CHECK(losses == numbers);
      CHECK(all == weights);
      CHECK(training.trainer.adam.m.whole() == (sharding == Sharding::none));
    }
  }
  CHECK(numbers[6] < numbers[0]);
}
