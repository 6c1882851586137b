// Two ranks that train one model: what they sum, against one rank that has all; sharing out; checkpoints; stopping.
// `mpirun -n 2` runs it; a rank that throws ends both, rather than leave the other waiting.
#include "mttt/io/mpi.hpp"

#include <csignal>
#include <cstring>

#include "../io/scratch.hpp"
#include "laws/moshi_small.hpp"
#include "model.hpp"
#include "mttt/io/run_folder.hpp"
#include "mttt/train/moshi_loss.hpp"

namespace {
using namespace mttt;
using mttt::test::Classifier;
using mttt::test::contains;
using mttt::testing::moshi_small;

const MpiRanks& two() {
  static const MpiSession session;
  static const MpiRanks ranks;
  return ranks;
}

/// Stands in every test.
struct EndAll {
  int before = std::uncaught_exceptions();
  EndAll() { REQUIRE(two().size() == 2); }
  ~EndAll() {
    if (std::uncaught_exceptions() > before) MPI_Abort(MPI_COMM_WORLD, 1);
  }
};

template <class S>
bool same(const S& a, const S& b) {
  return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())) == 0;
}

/// The classifier, whose frozen parameters have neither gradient nor moments.
template <class B>
struct Spare : Classifier<B> {
  struct Params : Classifier<B>::Params {
    static constexpr bool frozen_without_gradient = true;
  };
};

/// A training of the classifier: 24 examples a micro-batch, of which each rank has its share.
template <class T, class R, template <class> class Of = Classifier>
struct Training {
  using B = Cpu<T>;
  using Model = Of<B>;
  using P = typename Model::Params;
  using M = typename Of<Cpu<Wide<T>>>::Params;
  B be;
  Store<P, B> params{be};
  Trainer<P, B, M, R> trainer;

  explicit Training(TrainOptions options, const R& ranks = {}, const std::vector<GroupRule>& rules = {})
      : trainer(be, start(), options, rules, ranks) {}
  Store<P, B>& start() {
    Rng rng(4);
    Model::init(*params, rng);
    return params;
  }
  auto data() {
    return [this](std::int64_t i, M& grad) {
      const RankPart own =
          even_parts(24, trainer.ranks().size())[static_cast<std::size_t>(trainer.ranks().rank())];
      return Model::loss_and_gradient(be, *params, static_cast<Index>(i) * 24 + own.from, own.count, grad,
                                      trainer.ranks());
    };
  }
  std::vector<double> steps(int n) {
    std::vector<double> numbers;
    for (int i = 0; i < n; ++i) {
      const StepReport report = trainer.step(data());
      numbers.push_back(report.loss), numbers.push_back(report.gradient_norm);
    }
    return numbers;
  }
  /// Weights and moments, all of them.
  Store<M, B> whole() {
    return trainer.read_weights([&](const Store<M, B>& all) { return Store<M, B>(be, all); });
  }
};
}  // namespace

TEST_CASE("Sums over ranks go in their order, whoever owns them; parts go where they belong") {
  const EndAll end;
  const auto& ranks = two();
  Cpu<float> be;
  const Index n = 700'001;  // several pieces, the last one short
  const auto fill = [&](int rank, std::vector<float>& x) {
    Rng rng(static_cast<std::uint64_t>(rank));
    for (float& value : x) value = static_cast<float>(rng.normal());
  };
  std::vector<float> mine(n), first(n), second(n);
  fill(ranks.rank(), mine), fill(0, first), fill(1, second);
  for (std::size_t i = 0; i < first.size(); ++i) first[i] += second[i];
  auto all = mine, part = mine;
  ranks.all_reduce_sum(be, all.data(), n);
  CHECK(all == first);
  const RankParts parts{{0, 5, 1}, {5, n - 9, 0}, {n - 4, 4, 1}};
  ranks.reduce_scatter(be, part.data(), parts);
  for (const RankPart& p : parts) {
    if (p.owner == ranks.rank()) CHECK(std::equal(&part[p.from], &part[p.from] + p.count, &first[p.from]));
  }
  ranks.all_gather(be, part.data(), parts);
  CHECK(part == first);
  CHECK(ranks.sum(ranks.rank() + 0.5) == 2);

  const RankParts bytes{{0, 3, 0}, {3, 5, 1}};
  const std::string own = ranks.rank() == 0 ? "abc" : "defgh";
  std::string joined(8, '.');
  ranks.gather(reinterpret_cast<const std::byte*>(own.data()),
               ranks.rank() == 0 ? reinterpret_cast<std::byte*>(joined.data()) : nullptr, bytes);
  CHECK(joined == (ranks.rank() == 0 ? "abcdefgh" : "........"));
}

TEST_CASE("Two ranks with half of the rows each train as one with all: losses, norms, weights") {
  const EndAll end;
  const TrainOptions options{.max_steps = 6, .lr = 1e-2, .num_microbatches = 2};
  auto unshared = options;
  unshared.shard_optimizer = false;
  Training<double, OneRank> one(options);
  Training<double, MpiRanks> sharded(options, two()), copied(unshared, two());
  const auto expected = one.steps(6), got = sharded.steps(6);
  CHECK(got == copied.steps(6));  // the same bits
  CHECK(same(sharded.params, copied.params));
  CHECK(sharded.trainer.micro_batches == 12);
  // The sums over rows are cut elsewhere: float64 rounds them otherwise.
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(got[i] == Approx(expected[i]).epsilon(1e-12));
  for_each_tensor(
      [](std::string_view name, const auto& a, const auto& b) {
        INFO(name);
        for (Index i = 0; i < a.size(); ++i)
          CHECK(a.data()[i] == Approx(b.data()[i]).epsilon(1e-9).margin(1e-11));
      },
      *sharded.params, *one.params);

  // Each has about half of the moments.
  const auto& m = sharded.trainer.adam.m;
  CHECK(two().sum(static_cast<double>(m.last() - m.first())) == static_cast<double>(m.bytes()));
  CHECK(m.last() - m.first() < m.bytes());
  CHECK(copied.trainer.adam.m.whole());
}

TEST_CASE(
    "Mixed precision on two ranks: shared out or not, the same bits; weights are read and written whole") {
  const EndAll end;
  const TrainOptions options{.max_steps = 20, .lr = 1e-2};
  auto unshared = options;
  unshared.shard_optimizer = false;
  Training<bf16, MpiRanks> sharded(options, two()), copied(unshared, two());
  CHECK_FALSE(sharded.trainer.weights().whole());
  CHECK(sharded.steps(10) == copied.steps(10));
  CHECK(same(sharded.params, copied.params));
  CHECK(same(sharded.whole(), copied.whole()));

  for (auto* trainer : {&sharded, &copied}) {
    trainer->trainer.edit_weights([](auto& weights) {
      weights->first.weight.data()[0] = 1.0f / 3, weights->second.bias(2) = 2.0f / 3;
    });
  }
  CHECK(static_cast<float>(sharded.params->first.weight.data()[0]) == 0.333984375f);
  CHECK(static_cast<float>(sharded.params->second.bias(2)) == 0.66796875f);
  CHECK(sharded.whole()->second.bias(2) == 2.0f / 3);
  CHECK(sharded.steps(5) == copied.steps(5));
  CHECK(same(sharded.whole(), copied.whole()));
}

TEST_CASE("What is frozen has no share: the others' are the same bits, shared out or not, and it stays") {
  const EndAll end;
  const TrainOptions options{.max_steps = 20, .lr = 1e-2};
  auto unshared = options;
  unshared.shard_optimizer = false;
  // A tensor between others that train: what is sent of the weights has a gap.
  const std::vector<GroupRule> frozen{
      {.says = "second.weight", .matches = name_contains("second.weight"), .frozen = true}};
  using Two = Training<bf16, MpiRanks, Spare>;
  Two sharded(options, two(), frozen), copied(unshared, two(), frozen);
  const Store<Two::P, Two::B> before(sharded.be, sharded.params);
  CHECK(left_out(sharded.trainer.grad->second.weight));
  CHECK_FALSE(sharded.trainer.adam.m.whole());
  CHECK(sharded.steps(8) == copied.steps(8));
  CHECK(same(sharded.params, copied.params));
  CHECK(same(sharded.whole(), copied.whole()));
  CHECK_FALSE(same(sharded.params, before));
  const auto bytes = static_cast<std::size_t>(before->second.weight.size()) * sizeof(bf16);
  CHECK(std::memcmp(sharded.params->second.weight.data(), before->second.weight.data(), bytes) == 0);
}

TEST_CASE("Moshi: two ranks with half of the batch each give the gradients of one with the whole") {
  const EndAll end;
  using B = Cpu<float>;
  using Model = Moshi<moshi_small, B>;
  using P = Model::Params;
  B be;
  Rng rng(2);
  const auto start = laws::random_params<Model>(be, {.perturbation = 0.3}, rng);
  const Index batch = 4, steps = 9;
  const auto codes = be.make<std::int32_t, dyn, dyn, dyn>(batch, moshi_small.streams(), steps);
  for (Index i = 0; i < codes.size(); ++i)
    codes.data()[i] = static_cast<std::int32_t>(rng.below(i / steps % moshi_small.streams() == 0 ? 9 : 6));
  // The ranks' weights differ: rank 0 has text padding (weight a half), and frames that the loss leaves out.
  for (Index t = 0; t < steps; ++t) codes(0, 0, t) = t % 3 == 0 ? moshi_small.existing_text_padding_id : 7;
  for (Index k = 0; k < moshi_small.streams(); ++k)
    for (Index t = 5; t < steps; ++t) codes(1, k, t) = -1;

  const auto train = [&](const auto& ranks, Store<P, B>& params, int step_count, Index bucket) {
    using R = std::remove_cvref_t<decltype(ranks)>;
    const TrainOptions options{.max_steps = 3, .lr = 1e-3, .bucket = bucket};
    Trainer<P, B, P, R> trainer(be, params, options, {}, ranks);
    const RankPart own = even_parts(batch, ranks.size())[static_cast<std::size_t>(ranks.rank())];
    const Streams<const std::int32_t> mine(codes[own.from].data(), {own.count, codes.extent(1), steps});
    int told = 0;
    std::vector<double> numbers;
    for (int i = 0; i < step_count; ++i) {
      const auto report = trainer.step([&](std::int64_t, P& grad) {
        MoshiSegment<Model> segment;
        segment.complete_from = [&](const void* first) { ++told, trainer.complete_from(first); };
        const auto loss = moshi_loss<Model>(be, *params, mine, {}, &grad, segment, ranks);
        return MicroBatch{loss.total(), own.count * steps};
      });
      numbers.push_back(report.loss), numbers.push_back(report.gradient_norm);
    }
    CHECK(told == step_count * (1 + moshi_small.temporal.num_layers));
    return std::pair(numbers, Store<P, B>(be, trainer.grad));
  };
  auto options_alone = Store<P, B>(be, start), shared = Store<P, B>(be, start),
       early = Store<P, B>(be, start);
  const auto [expected, gradient] = train(OneRank{}, options_alone, 1, 1);
  Trainer<P, B, P, MpiRanks> unshared(be, shared, {.shard_optimizer = false}, {}, two());
  const RankPart own = even_parts(batch, 2)[static_cast<std::size_t>(two().rank())];
  const Streams<const std::int32_t> mine(codes[own.from].data(), {own.count, codes.extent(1), steps});
  unshared.step([&](std::int64_t, P& grad) {
    return MicroBatch{moshi_loss<Model>(be, *shared, mine, {}, &grad, {}, two()).total(), own.count * steps};
  });
  double difference = 0, norm = 0;
  for_each_tensor(
      [&](std::string_view, const auto& a, const auto& b) {
        for (Index i = 0; i < a.size(); ++i) {
          difference += std::pow(static_cast<double>(a.data()[i]) - static_cast<double>(b.data()[i]), 2);
          norm += std::pow(static_cast<double>(b.data()[i]), 2);
        }
      },
      *unshared.grad, *gradient);
  INFO(std::sqrt(difference / norm));
  CHECK(std::sqrt(difference / norm) < 2e-6);  // float32, sums of some hundred products cut in two

  // Sums that go on beside the backward pass, of whatever size, have the same bits as those after it.
  auto late = Store<P, B>(be, start);
  const auto beside = train(two(), early, 3, 1).first, after = train(two(), late, 3, 1 << 30).first;
  CHECK(beside == after);
  CHECK(same(early, late));
  CHECK(beside[0] == Approx(expected[0]).epsilon(1e-6));
  CHECK(beside[1] == Approx(expected[1]).epsilon(1e-5));
}

TEMPLATE_TEST_CASE("A checkpoint of two ranks is one file, from which one or two go on", "", float, bf16) {
  const EndAll end;
  const auto& ranks = two();
  std::optional<Scratch> owned;
  if (ranks.rank() == 0) owned.emplace();
  std::string folder = owned ? owned->folder.string() : "";
  folder.resize(4096);
  ranks.broadcast(folder.data(), 4096);
  folder.resize(folder.find('\0'));

  using Two = Training<TestType, MpiRanks>;
  using One = Training<TestType, OneRank>;
  const TrainOptions options{.max_steps = 12, .lr = 1e-2};
  Two through(options, ranks), saved(options, ranks), resumed(options, ranks);
  saved.steps(4);
  RunFolder files(folder, 3, ranks);
  files.save(saved.be, saved.trainer);
  ranks.barrier();

  // Two go on to the bits of a training that was not interrupted.
  through.steps(4);
  REQUIRE(files.resume(resumed.be, resumed.trainer));
  CHECK(resumed.trainer.adam.step == 4);
  CHECK(through.steps(4) == resumed.steps(4));
  CHECK(same(through.whole(), resumed.whole()));
  CHECK(same(through.params, resumed.params));

  // One reads the weights and moments of both; from its checkpoint two go on again.
  One alone(options);
  load_training(*files.newest_in(folder), alone.be, alone.trainer);
  CHECK(same(alone.whole(), saved.whole()));
  CHECK(same(alone.params, saved.params));
  CHECK(alone.steps(1)[0] == Approx(saved.steps(1)[0]).epsilon(1e-5));
  for (int i = 0; i < 2; ++i) alone.steps(1);
  const auto path = std::filesystem::path(folder) / ("alone" + std::to_string(ranks.rank()) + ".safetensors");
  save_training(path, alone.be, alone.trainer);
  Two again(options, ranks);
  load_training(path, again.be, again.trainer);
  CHECK(same(again.whole(), alone.whole()));
  CHECK(again.trainer.adam.step == 7);
  ranks.barrier();  // before the folder goes
}

namespace {
struct Lanes {
  Tensor<float, dyn, 3> fast;
  Tensor<std::int64_t, dyn> position;
  static void visit(auto&& f, auto&&... s) { f("fast", s.fast...), f("position", s.position...); }
};
}  // namespace

TEST_CASE("What the ranks' sessions carry is one file, in the order of the lanes") {
  const EndAll end;
  const auto& ranks = two();
  std::optional<Scratch> owned;
  if (ranks.rank() == 0) owned.emplace();
  std::string folder = owned ? owned->folder.string() : "";
  folder.resize(4096);
  ranks.broadcast(folder.data(), 4096);
  folder.resize(folder.find('\0'));

  using B = Cpu<float>;
  const RankPart own = even_parts(5, 2)[static_cast<std::size_t>(ranks.rank())];  // 2 and 3
  Training<float, MpiRanks> training({.max_steps = 5}, ranks);
  Store<Lanes, B> lanes(training.be, own.count), back(training.be, own.count), all(training.be, 5);
  for (Index b = 0; b < own.count; ++b) {
    for (Index i = 0; i < 3; ++i) lanes->fast(b, i) = static_cast<float>(10 * (own.from + b) + i);
    lanes->position(b) = own.from + b;
  }
  training.steps(1);
  RunFolder files(folder, 3, ranks);
  files.save(training.be, training.trainer, {}, &lanes);
  ranks.barrier();
  REQUIRE(files.resume(training.be, training.trainer, {}, &back));
  CHECK(same(lanes, back));
  load_state(std::filesystem::path(folder) / "carried_000001.safetensors", training.be, all);
  for (Index b = 0; b < 5; ++b) CHECK(all->fast(b, 1) == static_cast<float>(10 * b + 1));
  Store<Lanes, B> too_many(training.be, 4);
  CHECK_THROWS_WITH(files.resume(training.be, training.trainer, {}, &too_many), contains("sessions"));
  ranks.barrier();
}

TEST_CASE("A signal to one rank stops both after the same step; reports count the frames of both") {
  const EndAll end;
  Training<float, MpiRanks> training({.max_steps = 100, .log_freq = 1}, two());
  int saved = 0;
  double frames = 0;
  const auto data = training.data();
  const bool finished = training.trainer.run(
      [&](std::int64_t i, auto& grad) {
        if (i == 3 && two().rank() == 1) std::raise(SIGUSR1);
        return data(i, grad);
      },
      {.log = [&](const StepReport& r) { frames = r.frames_per_second * r.seconds; },
       .checkpoint = [&] { ++saved; },
       .progress = nullptr});
  CHECK_FALSE(finished);
  CHECK(training.trainer.adam.step == 4);
  CHECK(saved == 1);
  CHECK(frames == Approx(4 * 24));
}
