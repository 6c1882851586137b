// Training checkpoints that resume to the bit, the folder of a run, and the State of a stream.
#include "../train/model.hpp"
#include "mttt/io/run_folder.hpp"
#include "scratch.hpp"

namespace {

using namespace mttt;
using mttt::test::contains;
using B = Cpu<float>;
using Model = test::Classifier<B>;

template <class P, class Backend>
bool same(const Store<P, Backend>& a, const Store<P, Backend>& b) {
  return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())) == 0;
}

struct Run {
  B be;
  Store<Model::Params, B> params{be};
  Trainer<Model::Params, B> trainer;

  static TrainOptions options() {
    return {.max_steps = 20, .lr = 1e-2, .num_microbatches = 2, .ckpt_freq = 5, .seed = 9};
  }
  explicit Run(std::uint64_t seed) : trainer(be, (init(params, seed), params), options()) {}
  static void init(Store<Model::Params, B>& params, std::uint64_t seed) {
    Rng rng(seed);
    Model::init(*params, rng);
  }
  /// Rows are drawn from the trainer's generator: the data depends on it and on the position.
  auto data() {
    return [this](std::int64_t i, Model::Params& grad) {
      const auto jump = static_cast<Index>(trainer.rng.below(1000));
      return Model::loss_and_gradient(be, *params, static_cast<Index>(i) * 1000 + jump, 13, grad);
    };
  }
  void steps(int n) {
    for (int i = 0; i < n; ++i) trainer.step(data());
  }
};

struct Memory {
  Tensor<float, dyn, 3> fast;
  Tensor<std::int64_t, dyn> offset;
  Tensor<std::uint8_t, dyn> started;
  static void visit(auto&& f, auto&&... s) {
    f("layers.0.fast", s.fast...), f("layers.0.offset", s.offset...), f("started", s.started...);
  }
};
struct OtherMemory {
  Tensor<float, dyn, 4> fast;
  Tensor<std::int32_t, dyn> offset;
  Tensor<float, dyn> extra;
  static void visit(auto&& f, auto&&... s) {
    f("layers.0.fast", s.fast...), f("layers.0.offset", s.offset...), f("extra", s.extra...);
  }
};

}  // namespace

TEST_CASE("a resumed training has the bits of an uninterrupted one", "[io]") {
  const Scratch folder;
  Run whole(1), first(1), second(2);
  whole.steps(20);
  first.steps(10);
  CHECK_FALSE(same(first.params, whole.params));
  const nlohmann::json config = {{"hidden", 11}};
  save_training(folder / "t", first.be, first.trainer, config);
  second.steps(3);  // whatever it did before must not matter
  load_training(folder / "t", second.be, second.trainer, config);
  CHECK(second.trainer.adam.step == 10);
  CHECK(second.trainer.micro_batches == 20);
  second.steps(10);
  CHECK(same(second.params, whole.params));
  CHECK(same(second.trainer.adam.m, whole.trainer.adam.m));
  CHECK(same(second.trainer.adam.v, whole.trainer.adam.v));
  CHECK(second.trainer.rng.counter() == whole.trainer.rng.counter());

  Store<Model::Params, B> params(first.be);  // a stream can start from a training checkpoint
  load_params(folder / "t", first.be, params, {.config = config});
  CHECK(same(params, first.params));
}

TEST_CASE("mixed precision resumes to the bit, and float32 can load it", "[io]") {
  const Scratch folder;
  using Half = test::Classifier<Cpu<bf16>>;
  using Mixed = Trainer<Half::Params, Cpu<bf16>, Model::Params>;
  struct MixedRun {
    Cpu<bf16> be;
    Store<Half::Params, Cpu<bf16>> params{be};
    Mixed trainer;
    explicit MixedRun(std::uint64_t seed) : trainer(be, init(params, seed), Run::options()) {}
    static Store<Half::Params, Cpu<bf16>>& init(Store<Half::Params, Cpu<bf16>>& params, std::uint64_t seed) {
      Rng rng(seed);
      Half::init(*params, rng);
      return params;
    }
    void steps(int n) {
      for (int i = 0; i < n; ++i) {
        trainer.step([this](std::int64_t index, Model::Params& grad) {
          return Half::loss_and_gradient(be, *params, static_cast<Index>(index) * 13, 13, grad);
        });
      }
    }
  };
  MixedRun whole(1), first(1), second(2);
  whole.steps(20);
  first.steps(10);
  RunFolder files(folder / "run");
  files.save(first.be, first.trainer);
  second.steps(3);
  REQUIRE(files.resume(second.be, second.trainer));
  CHECK(same(second.trainer.weights(), first.trainer.weights()));
  CHECK(same(second.params, first.params));
  second.steps(10);
  CHECK(same(second.trainer.weights(), whole.trainer.weights()));
  CHECK(same(second.params, whole.params));
  CHECK(same(second.trainer.adam.m, whole.trainer.adam.m));
  CHECK(same(second.trainer.adam.v, whole.trainer.adam.v));

  B exact;
  Store<Model::Params, B> loaded(exact);
  load_params(*files.newest(), exact, loaded);
  CHECK(std::memcmp(loaded.data(), first.trainer.weights().data(),
                    static_cast<std::size_t>(loaded.bytes())) == 0);
}

TEST_CASE("what is no training checkpoint of this model is refused and changes nothing", "[io]") {
  const Scratch folder;
  Run run(1);
  run.steps(2);
  const Store<Model::Params, B> before(run.be, run.params);
  const auto load = [&] { load_training(folder / "f", run.be, run.trainer, {{"hidden", 11}}); };

  save_params(folder / "f", run.be, run.params);
  check_refused(load, "kind 'params'; expected kind 'training'");
  save_training(folder / "f", run.be, run.trainer, {{"hidden", 12}});
  check_refused(load, "config field 'hidden': found 12, expected 11");
  save_training(folder / "f", run.be, run.trainer);
  check_refused(load, "no 'config'");

  SafetensorsWriter writer;  // a file with the steps but without the moments
  detail::set_kind(writer, "training", {{"hidden", 11}});
  std::vector<std::vector<std::byte>> kept;
  detail::add_tensors(run.be, writer, *run.params, "model.", {}, true, kept);
  writer.set_metadata("step", "ten");
  writer.write(folder / "f");
  check_refused(load, "metadata 'step' = 'ten'; expected a whole number");
  writer.set_metadata("step", "10"), writer.set_metadata("rng_seed", "18446744073709551615");
  writer.set_metadata("rng_counter", "3"), writer.set_metadata("micro_batches", "20");
  writer.write(folder / "f");
  const std::string message = error_of(load);
  CHECK_THAT(message, contains("8 problems") &&
                          contains("missing tensor 'adam.m.first.weight' of shape [11, 6]") &&
                          contains("missing tensor 'adam.v.second.bias' of shape [5]"));
  CHECK(same(run.params, before));
  CHECK(run.trainer.adam.step == 2);
}

TEST_CASE("the folder of a run keeps metrics and the newest checkpoints", "[io]") {
  const Scratch folder;
  Run whole(1), stopped(1), resumed(2);
  whole.steps(20);
  auto train = [](Run& run, RunFolder& files, std::int64_t until) {
    run.trainer.run(
        [&](std::int64_t i, Model::Params& grad) {
          if (i == 2 * until - 1) std::raise(SIGTERM);  // within the last micro-batch of step `until`
          return run.data()(i, grad);
        },
        {.log =
             [&](const StepReport& r) {
               files.log(r, {{"text_loss", r.loss}});
             },
         .checkpoint = [&] { files.save(run.be, run.trainer); },
         .progress = nullptr});
  };
  {
    RunFolder files(folder / "run/a", 2);
    CHECK_FALSE(files.resume(stopped.be, stopped.trainer));
    train(stopped, files, 12);
    CHECK(files.newest() == folder / "run/a/step_000012.safetensors");
    CHECK(std::filesystem::exists(folder / "run/a/step_000010.safetensors"));
    CHECK_FALSE(std::filesystem::exists(folder / "run/a/step_000005.safetensors"));
  }
  RunFolder files(folder / "run/a", 2);
  CHECK(files.resume(resumed.be, resumed.trainer));
  CHECK(resumed.trainer.adam.step == 12);
  train(resumed, files, 1000);
  CHECK(same(resumed.params, whole.params));

  std::vector<nlohmann::json> lines;
  std::ifstream metrics(folder / "run/a/metrics.jsonl");
  for (std::string line; std::getline(metrics, line);) lines.push_back(nlohmann::json::parse(line));
  REQUIRE(lines.size() == 5);  // steps 1, 10, 12 (stopped), the resumption, 20
  CHECK(lines[0].at("step") == 1);
  CHECK(lines[1].at("step") == 10);
  CHECK(lines[2].at("step") == 12);
  CHECK(lines[3].at("resumed_at") == 12);
  CHECK(lines[4].at("step") == 20);
  CHECK(lines[4].at("text_loss") == lines[4].at("loss"));

  folder.put("plain", "");
  check_refused([&] { RunFolder(folder / "plain/x"); }, "a folder that can be made");
}

TEST_CASE("a State returns to the bit, and only to its own model", "[io]") {
  const Scratch folder;
  B be;
  Store<Memory, B> state(be, 2), back(be, 2), three(be, 3);
  state->fast(1, 2) = NAN;  // bits, not numbers
  state->fast(0, 1) = -0.0f;
  state->offset(0) = (std::int64_t{1} << 60) + 1;
  state->offset(1) = -7;
  state->started(1) = 255;
  const nlohmann::json config = {{"name", "tiny"}};
  save_state(folder / "s", be, state, config);
  check_refused([&] { load_state(folder / "s", be, back, config); }, "'layers.0.fast': nan at element 5");
  load_state(folder / "s", be, back, config, false);
  CHECK(same(state, back));

  check_refused([&] { load_state(folder / "s", be, back, {{"name", "big"}}); }, "config field 'name'");
  check_refused([&] { load_state(folder / "s", be, three); },
                "tensor 'layers.0.offset': found I64 [2], expected I64 [3]");
  Store<OtherMemory, B> other(be, 2);
  const std::string message = error_of([&] { load_state(folder / "s", be, other); });
  CHECK_THAT(message, contains("'layers.0.fast': found F32 [2, 3], expected F32 [2, 4]") &&
                          contains("'layers.0.offset': found I64 [2], expected I32 [2]") &&
                          contains("missing tensor 'extra' of shape [2]") &&
                          contains("1 tensors of another model"));
  CHECK(other->offset(0) == 0);
  save_params(folder / "p", be, state);
  check_refused([&] { load_state(folder / "p", be, back); }, "kind 'params'; expected kind 'state'");
  folder.put("cut", content_of(folder / "s").substr(0, 300));
  check_refused([&] { load_state(folder / "cut", be, back); }, "cut");
  CHECK(same(state, back));
}
