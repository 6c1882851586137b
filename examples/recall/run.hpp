// One variant, from its start to its figures: trained on conversations from their start to their end, then asked as
// a stream is. Models are compiled in files of their own, beside this one.
#pragma once

#include <chrono>
#include <cstdio>
#include <numeric>
#include <optional>

#include "../backend.hpp"
#include "../questions.hpp"
#include "../train/passes.hpp"
#include "../train/upload_start.hpp"
#include "models.hpp"
#include "mttt/data/loader.hpp"
#include "mttt/io/alignment.hpp"
#include "mttt/io/checkpoint.hpp"
#include "mttt/io/manifest.hpp"
#include "mttt/io/model_config.hpp"
#include "mttt/lm/gates.hpp"
#include "mttt/lm/listen.hpp"
#include "mttt/train/trainer.hpp"
#include "variants.hpp"

namespace recalls {
using Json = nlohmann::json;
using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Upper ends of the delays that are told apart, in seconds.
inline constexpr double delay_edges[] = {5, 10, 20, 40, 80, 160, 320, 640};
inline constexpr Index frames_a_bin = 250;  // of the loss by position: 20 s

/// What a model knows of a test.
struct Answers {
  std::vector<Index> known = std::vector<Index>(std::size(delay_edges)), asked = known;
  std::vector<double> text_loss, audio_loss, frames;  // sums, by position

  Index heard = 0, echoed = 0;  // values that the model repeats when it is told them

  void add(double delay, bool right) {
    const auto edge = std::lower_bound(std::begin(delay_edges), std::end(delay_edges), delay);
    const auto bin =
        std::min<std::size_t>(static_cast<std::size_t>(edge - delay_edges), std::size(delay_edges) - 1);
    known[bin] += right, ++asked[bin];
  }
  void add(const Listened& listened) {
    for (std::size_t t = 0; t < listened.text_loss.size(); ++t) {
      const std::size_t bin = t / frames_a_bin;
      if (bin >= frames.size()) text_loss.resize(bin + 1), audio_loss.resize(bin + 1), frames.resize(bin + 1);
      if (!std::isfinite(listened.audio_loss[t])) continue;
      if (std::isfinite(listened.text_loss[t])) text_loss[bin] += listened.text_loss[t];
      audio_loss[bin] += listened.audio_loss[t], frames[bin] += 1;
    }
  }
  double share() const {
    const double all = static_cast<double>(std::accumulate(asked.begin(), asked.end(), Index{0}));
    return all > 0 ? static_cast<double>(std::accumulate(known.begin(), known.end(), Index{0})) / all : NAN;
  }
  double hearing() const {
    return static_cast<double>(heard) / static_cast<double>(std::max<Index>(echoed, 1));
  }
  Json json() const {
    return {{"known", known},         {"asked", asked},           {"heard", heard},  {"echoed", echoed},
            {"text_loss", text_loss}, {"audio_loss", audio_loss}, {"frames", frames}};
  }
};

template <MoshiConfig C>
class Run {
  using Pass = Passes<C, Number>;
  using B = typename Pass::B;
  using Model = typename Pass::Model;
  using P = typename Pass::P;
  using M = typename Pass::M;
  static constexpr bool has_ttt = C.temporal.num_ttt_layers() > 0;

 public:
  Run(const Variant& variant, const Settings& settings, std::uint64_t seed)
      : variant_(variant),
        settings_(settings),
        seed_(seed),
        be_(open_device<Number>()),
        ranks_(ranks_of(be_)),
        params_(be_),
        trainer_(be_, params_, options(), rules(), ranks_) {}

  Json operator()() {
    start();
    const auto begin = Clock::now();
    Json looks = Json::array();
    for (const Stage& stage : settings_.stages) train(stage, looks);
    const double trained = seconds_since(begin);
    if (!settings_.save.empty())
      save_params(settings_.save, be_, params_,
                  {.dtype = DType::BF16, .config = config_json<C>("moshi_small")});
    Json tests, gates = Json::array();
    for (const Test& test : settings_.tests) tests[test.name] = ask(test, -1).json();
    if constexpr (has_ttt)
      for (const auto& gate : gate_openings(be_, *params_)) gates.push_back(gate.opening);
    return {{"variant", variant_.name},
            {"says", variant_.says},
            {"seed", seed_},
            {"device", name_of(be_)},
            {"window", C.temporal.context},
            {"parameters", count_elements(*params_)},
            {"state_bytes", Store<typename Model::Transformer::State, B>(be_, 1).bytes()},
            {"steps", trainer_.adam.step},
            {"seconds", trained},
            {"lr", settings_.lr},
            {"base_lr", variant_.base_lr},
            {"losses", losses_},
            {"looks", looks},
            {"gates", gates},
            {"tests", tests}};
  }

 private:
  TrainOptions options() const {
    std::int64_t steps = 0;
    for (const Stage& stage : settings_.stages) steps += stage.steps;
    return {.max_steps = steps, .lr = settings_.lr, .adam = {.weight_decay = 0.01}, .seed = seed_};
  }
  static std::vector<GroupRule> rules() {
    if (!has_ttt) return {};
    return {frozen_base_lr()};
  }

  /// Drawn on the host, the same on every backend, with the variant's gates and inner rate; or from a file.
  void start() {
    using OnHost = Moshi<C, Host>;
    Host host;
    Store<typename OnHost::Params, Host> drawn(host);
    Rng rng(seed_);
    OnHost::init(*drawn, rng);
    for_each_tensor(
        [&](std::string_view name, auto& t) {
          if (name.ends_with("base_lr")) init_constant(t, variant_.base_lr);
          if (name.ends_with("gating_alpha")) init_constant(t, variant_.gate);
          if (name == "text_emb.weight") scale(t, settings_.text_embedding);
          if (is_output(name)) scale(t, settings_.outputs);
        },
        *drawn);
    if (!settings_.from.empty()) load_params(settings_.from, host, drawn);
    upload_start(be_, trainer_, drawn);
  }

  /// Whether a layer of the temporal transformer adds its product to what came in.
  static bool is_output(std::string_view name) {
    return name.starts_with("transformer.") &&
           (name.ends_with("out_projs.0.weight") || name.ends_with("o_proj.weight") ||
            name.ends_with("linear_out.weight"));
  }

  static void scale(auto& tensor, double by) {
    for (Index i = 0; i < tensor.size(); ++i)
      tensor.data()[i] = static_cast<float>(static_cast<double>(tensor.data()[i]) * by);
  }

  /// In an order of this seed's.
  std::vector<DataSource> recordings(const std::string& data) const {
    std::vector<std::string> skipped;
    auto sources = load_data_sources(data, skipped);
    if (!skipped.empty()) fail(data, skipped[0], "codes of all its recordings", "encode them");
    Rng rng(seed_);
    for (DataSource& source : sources)
      for (std::size_t i = source.recordings.size(); i > 1; --i)
        std::swap(source.recordings[i - 1], source.recordings[rng.below(i)]);
    return sources;
  }

  void train(const Stage& stage, Json& looks) {
    const Index batch = std::max<Index>(1, settings_.frames_a_step / stage.frames);
    const Batches batches(
        recordings(stage.data),
        {.batch = batch, .frames = stage.frames, .seed = seed_, .order = Order::sequential});
    Loader loader(batches, has_ttt ? 1 + C.max_delay() : 0, [](Index k) { return C.initial().of(k); });
    std::optional<Store<typename Model::Carried, B>> carried;
    if (has_ttt) carried.emplace(be_, batch);
    const LossConfig weights{.text_padding_weight = static_cast<float>(settings_.text_padding_weight)};
    const std::int64_t first = trainer_.micro_batches;
    auto began = Clock::now();
    for (std::int64_t i = 0; i < stage.steps; ++i) {
      MoshiLoss losses{};
      trainer_.step([&](std::int64_t index, M& grad) {
        const auto scope = be_.scope();
        const LoadedBatch& loaded = loader.take(index - first);
        MoshiSegment<Model> segment;
        if (carried) {
          segment.carry = {&**carried, &**carried, loader.upload(be_, loaded.continues)};
          segment.before = loader.upload(be_, loaded.before);
        }
        losses = Pass::loss(be_, *params_, loader.upload(be_, loaded.codes), weights, grad, segment, ranks_,
                            nullptr);
        return MicroBatch{losses.total(), batch * stage.frames};
      });
      losses_.push_back(losses.text_loss);
      const std::int64_t step = trainer_.adam.step;
      if (settings_.look_every == 0 || step % settings_.look_every != 0) continue;
      Json look = {{"step", step}, {"text_loss", losses.text_loss}, {"audio_loss", losses.audio_loss}};
      std::printf("%-8s seed %llu  step %5lld  text %.3f  audio %.3f  %.0f frames/s", variant_.name,
                  static_cast<unsigned long long>(seed_), static_cast<long long>(step), losses.text_loss,
                  losses.audio_loss,
                  static_cast<double>(settings_.look_every * batch * stage.frames) / seconds_since(began));
      for (const Test& test : settings_.tests) {
        const Answers answers = ask(test, settings_.looked_at);
        look[test.name] = answers.share();
        look[test.name + "_heard"] = answers.hearing();
        std::printf("  %s %.2f heard %.2f", test.name.c_str(), answers.share(), answers.hearing());
      }
      std::printf("\n");
      std::fflush(stdout);
      looks.push_back(std::move(look));
      began = Clock::now();
    }
  }

  /// Of the first `most` recordings, or all (-1).
  Answers ask(const Test& test, Index most) {
    // Many steps at once of attention over thousands of frames have no fast kernel; its one pass has.
    constexpr ListenOptions how{.chunk = 128, .offline = !has_ttt && C.temporal.context > 1000};
    const auto is_word = [](std::int32_t code) {
      return code >= 0 && code != C.existing_text_padding_id && code != C.existing_text_end_padding_id;
    };
    Answers answers;
    for (const ManifestSource& source : read_data_sources(test.data)) {
      for (const ManifestEntry& entry : source.entries) {
        if (most-- == 0) return answers;
        const CodedRecording recording = load_codes(entry.codes);
        const Listened heard = listen<Model>(be_, *params_, recording.codes, how);
        answers.add(heard);
        for (const Question& question : read_questions(
                 sidecar_of(entry.recording), "make it with make_data memory", WithoutQuestions::allowed)) {
          const auto pieces = [&](double from, double to) {
            return pieces_between(from, to, recording, is_word);
          };
          const Pieces answer = pieces(question.from, question.to);
          if (!answer.empty()) answers.add(question.delay, knows(answer, heard.likeliest_word));
          if (!question.echoed) continue;
          ++answers.echoed;
          answers.heard += knows(pieces(question.heard_from, question.heard_to), heard.likeliest_word);
        }
      }
    }
    return answers;
  }

  const Variant& variant_;
  const Settings& settings_;
  const std::uint64_t seed_;
  B be_;
  const Ranks ranks_;
  Store<P, B> params_;
  Trainer<P, B, M, Ranks> trainer_;
  std::vector<double> losses_;  // of the text, by step
};

}  // namespace recalls
