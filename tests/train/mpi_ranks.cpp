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

TrainOptions with(TrainOptions options, Sharding sharding) {
  options.sharding = sharding;
  return options;
}

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
                                      trainer.ranks(), trainer.hooks());
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
  /// All weights as they are trained, and as the model reads them.
  Store<M, B> whole() {
    return trainer.read_weights([&](const Store<M, B>& all) { return Store<M, B>(be, all); });
  }
  Store<P, B> read() { return Store<P, B>(be, trainer.whole_params()); }
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
  std::vector<float> elsewhere(n);
  ranks.reduce_scatter(be, part.data(), elsewhere.data(), parts);
  CHECK(part == mine);
  ranks.reduce_scatter(be, part.data(), part.data(), parts);
  for (const RankPart& p : parts) {
    if (p.owner != ranks.rank()) continue;
    CHECK(std::equal(&part[p.from], &part[p.from] + p.count, &first[p.from]));
    CHECK(std::equal(&elsewhere[p.from], &elsewhere[p.from] + p.count, &first[p.from]));
  }
  ranks.all_gather(be, elsewhere.data(), part.data(), parts);
  CHECK(part == first);
  ranks.all_gather(be, elsewhere.data(), elsewhere.data(), parts);
  CHECK(elsewhere == first);
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
  Training<double, OneRank> one(options);
  Training<double, MpiRanks> sharded(options, two()), copied(with(options, Sharding::none), two());
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

  // Where gradients are shared out too, ranks are added up in each micro-batch, not at the end.
  Training<double, MpiRanks> gradients(with(options, Sharding::gradients), two()),
      full(with(options, Sharding::full), two());
  const auto summed_early = gradients.steps(6);
  CHECK(summed_early == full.steps(6));
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(summed_early[i] == Approx(got[i]).epsilon(1e-12));
  CHECK(same(gradients.params, full.read()));
}

TEST_CASE(
    "Mixed precision on two ranks: shared out or not, the same bits; weights are read and written whole") {
  const EndAll end;
  const TrainOptions options{.max_steps = 20, .lr = 1e-2};
  const auto edit = [](auto& training) {
    training.trainer.edit_weights([](auto& weights) {
      weights->first.weight.data()[0] = 1.0f / 3, weights->second.bias(2) = 2.0f / 3;
    });
  };
  using Two = Training<bf16, MpiRanks>;
  Two copied(with(options, Sharding::none), two());
  const auto before = copied.steps(10);
  const Store<Two::P, Two::B> read_before = copied.read();
  const Store<Two::M, Two::B> whole_before = copied.whole();
  edit(copied);
  const auto after = copied.steps(5);
  for (const Sharding sharding : {Sharding::optimizer, Sharding::gradients, Sharding::full}) {
    INFO(name_of(sharding));
    Two sharded(with(options, sharding), two());
    CHECK_FALSE(sharded.trainer.weights().whole());
    CHECK(sharded.steps(10) == before);
    CHECK(sharded.params.whole() == (sharding != Sharding::full));
    CHECK(sharded.trainer.grad.whole() == (sharding == Sharding::optimizer));
    CHECK(same(sharded.whole(), whole_before));
    sharded.trainer.read_weights(name_contains("bias"), [&](const auto& some) {
      CHECK(left_out(some->first.weight));
      CHECK(some->first.bias(1) == whole_before->first.bias(1));
      CHECK(some->second.bias(2) == whole_before->second.bias(2));
    });
    CHECK(same(sharded.read(), read_before));

    edit(sharded);
    CHECK(static_cast<float>(sharded.params->first.weight.data()[0]) == 0.333984375f);
    CHECK(static_cast<float>(sharded.params->second.bias(2)) == 0.66796875f);
    CHECK(sharded.whole()->second.bias(2) == 2.0f / 3);
    CHECK(sharded.steps(5) == after);
    CHECK(same(sharded.whole(), copied.whole()));
  }
}

TEST_CASE("A pass that does not say which units it uses is refused where these are shared out") {
  const EndAll end;
  using Two = Training<float, MpiRanks>;
  Two training({.sharding = Sharding::gradients}, two());
  CHECK_THROWS_WITH(training.trainer.step([&](std::int64_t, Two::M& grad) {
    return Two::Model::loss_and_gradient(training.be, *training.params, 0, 12, grad, two());
  }),
                    contains("sharding: gradients") && contains("unit 0") && contains("hooks()"));
}

TEST_CASE("What is frozen has no share: the others' are the same bits, shared out or not, and it stays") {
  const EndAll end;
  const TrainOptions options{.max_steps = 20, .lr = 1e-2};
  // A tensor between others that train: what is sent of the weights has a gap.
  const std::vector<GroupRule> frozen{
      {.says = "second.weight", .matches = name_contains("second.weight"), .frozen = true}};
  using Two = Training<bf16, MpiRanks, Spare>;
  Two sharded(options, two(), frozen), copied(with(options, Sharding::none), two(), frozen);
  const Store<Two::P, Two::B> before(sharded.be, sharded.params);
  CHECK(left_out(sharded.trainer.grad->second.weight));
  CHECK_FALSE(sharded.trainer.adam.m.whole());
  CHECK(sharded.steps(8) == copied.steps(8));
  CHECK(same(sharded.params, copied.params));
  CHECK(same(sharded.whole(), copied.whole()));
  CHECK_FALSE(same(sharded.params, before));
  const auto bytes = static_cast<std::size_t>(before->second.weight.size()) * sizeof(bf16);
  CHECK(std::memcmp(sharded.params->second.weight.data(), before->second.weight.data(), bytes) == 0);
  for (const Sharding sharding : {Sharding::gradients, Sharding::full}) {
    Two more(with(options, sharding), two(), frozen);
    more.steps(8);
    CHECK(same(more.whole(), copied.whole()));
    CHECK(same(more.read(), copied.params));
  }
  // All that trains lies in one rank's part of what the model reads.
  const std::vector<GroupRule> last{
      {.says = "but the last", .matches = [](auto name) { return name != "second.bias"; }, .frozen = true}};
  Two lopsided(with(options, Sharding::full), two(), last), even(with(options, Sharding::none), two(), last);
  CHECK(lopsided.steps(3) == even.steps(3));
  CHECK(same(lopsided.read(), even.params));
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

  struct Trained {
    std::vector<double> numbers;
    Store<P, B> gradient, weights;
    Index bytes;  // that the training held beside activations
  };
  const auto train = [&](const auto& ranks, int step_count, TrainOptions options) {
    using R = std::remove_cvref_t<decltype(ranks)>;
    const RankPart own = even_parts(batch, ranks.size())[static_cast<std::size_t>(ranks.rank())];
    const Streams<const std::int32_t> mine(codes[own.from].data(), {own.count, codes.extent(1), steps});
    const Index before = CpuMemory::held() - be.arena_bytes();
    auto params = Store<P, B>(be, start);
    options.max_steps = 3, options.lr = 1e-3;
    Trainer<P, B, P, R> trainer(be, params, options, {}, ranks);
    const UnitHooks hooks = trainer.hooks();
    int told = 0;
    std::vector<double> numbers;
    for (int i = 0; i < step_count; ++i) {
      const auto report = trainer.step([&](std::int64_t, P& grad) {
        MoshiSegment<Model> segment;
        segment.hooks.call = [&](UnitMoment moment, Index unit) {
          told += moment == UnitMoment::added;
          if (hooks.call) hooks.call(moment, unit);
        };
        const auto loss = moshi_loss<Model>(be, *params, mine, {}, &grad, segment, ranks);
        return MicroBatch{loss.total(), own.count * steps};
      });
      numbers.push_back(report.loss), numbers.push_back(report.gradient_norm);
    }
    CHECK(told == step_count * (Model::linears_unit + 1));
    const Index bytes = CpuMemory::held() - be.arena_bytes() - before;
    const auto& whole = trainer.has_whole(trainer.adam.m) ? trainer.grad : start;
    return Trained{numbers, Store<P, B>(be, whole), Store<P, B>(be, trainer.whole_params()), bytes};
  };
  const Trained one = train(OneRank{}, 1, {});
  const Trained none = train(two(), 1, {.sharding = Sharding::none});
  double difference = 0, norm = 0;
  for_each_tensor(
      [&](std::string_view, const auto& a, const auto& b) {
        for (Index i = 0; i < a.size(); ++i) {
          difference += std::pow(static_cast<double>(a.data()[i]) - static_cast<double>(b.data()[i]), 2);
          norm += std::pow(static_cast<double>(b.data()[i]), 2);
        }
      },
      *none.gradient, *one.gradient);
  INFO(std::sqrt(difference / norm));
  CHECK(std::sqrt(difference / norm) < 2e-6);  // float32, sums of some hundred products cut in two

  // Sums that go on beside the backward pass, of whatever size, and of whatever is shared out, have the same bits.
  const Trained after = train(two(), 3, {.sharding = Sharding::none, .bucket = 1 << 30});
  CHECK(after.numbers[0] == Approx(one.numbers[0]).epsilon(1e-6));
  CHECK(after.numbers[1] == Approx(one.numbers[1]).epsilon(1e-5));
  std::array<double, 4> bytes{};  // of both ranks
  for (const Sharding sharding : {Sharding::none, Sharding::optimizer, Sharding::gradients, Sharding::full}) {
    INFO(name_of(sharding));
    const Trained beside = train(two(), 3, {.sharding = sharding, .bucket = 1});
    CHECK(beside.numbers == after.numbers);
    CHECK(same(beside.weights, after.weights));
    bytes[static_cast<std::size_t>(sharding)] = two().sum(static_cast<double>(beside.bytes));
  }

  // And what is shared out is held once, beside the slots.
  const auto all = static_cast<double>(start.bytes());
  double slots = 0;
  const auto units = detail::unit_ranges(start);
  for (std::size_t slot = 0; slot < 2; ++slot) {
    Index most = 0;
    for (std::size_t u = slot; u < units.size(); u += 2)
      most = std::max(most, units[u].last - units[u].first);
    slots += static_cast<double>(most);
  }
  CHECK(bytes[0] - bytes[1] == 2 * all);          // two moments
  CHECK(bytes[1] - bytes[2] == all - 2 * slots);  // gradients
  CHECK(bytes[2] - bytes[3] == all - 2 * slots);  // what the model reads
  CHECK(units.back().last == start.bytes());
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

  // So they do with all shared out, from a checkpoint of either.
  Two full(with(options, Sharding::full), ranks), other(options, ranks);
  REQUIRE(files.resume(full.be, full.trainer));
  full.steps(2);
  RunFolder files_of_full(folder + "/full", 3, ranks);
  files_of_full.save(full.be, full.trainer);
  ranks.barrier();
  REQUIRE(files_of_full.resume(other.be, other.trainer));
  CHECK(full.steps(2) == other.steps(2));
  CHECK(same(full.whole(), through.whole()));
  CHECK(same(other.whole(), through.whole()));
  CHECK(same(full.read(), through.params));

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
