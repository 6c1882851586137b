// What subject.hpp declares, for any configuration of the model.
#pragma once

#include <sys/resource.h>

#include <chrono>
#include <fstream>
#include <map>

#include "../backend.hpp"
#include "mttt/io/model_config.hpp"
#include "mttt/io/published.hpp"
#include "mttt/lm/gates.hpp"
#include "subject.hpp"

namespace diagnose {

using namespace mttt;

/// Of this process, now.
inline double resident_mb() {
  std::ifstream file("/proc/self/statm");
  double size = 0, resident = 0;
  file >> size >> resident;
  return resident * 4096e-6;
}

template <MoshiConfig C, class B>
class SubjectOf : public Subject {
  using T = typename B::Scalar;
  using A = typename B::Accum;
  using Model = Moshi<C, B>;
  using Transformer = typename Model::Transformer;
  using Gen = LMGen<C, B>;
  static constexpr Index streams = C.streams(), spoken = C.spoken_streams(),
                         heard_streams = C.heard_streams();

 public:
  SubjectOf(const std::filesystem::path& checkpoint, const std::string& preset) {
    ModelFiles files;
    files.moshi = checkpoint;
    load_moshi<C>(files, be_, params_);
    facts = {preset,
             stored_in<B>(),
             name_of(be_),
             checkpoint.string(),
             mttt::name_of(C.temporal.placement),
             C.temporal.num_layers,
             C.dep_q,
             C.temporal.ttt.mini_batch_size,
             C.temporal.context,
             {},
             {streams, C.delays, C.text_card, C.card},
             C.existing_text_padding_id,
             C.existing_text_end_padding_id};
    for (Index i = 0; i < C.temporal.num_layers; ++i)
      if (C.temporal.has_ttt(i)) facts.ttt_layers.push_back(i);
  }

  void become(const Condition& condition) override {
    reset_every_ = condition.reset_every;
    for_each_tensor(
        [&](std::string_view name, auto& t) {
          const bool gate = name.ends_with("gating_alpha"), rate = name.ends_with("base_lr");
          if (!gate && !rate) return;
          auto& learned = learned_[std::string(name)];
          if (learned.empty()) learned = detail::on_host(be_, t);
          be_.to_device(learned.data(), t.data(), t.size());
          if (gate && condition.alpha) be_.fill(t.data(), t.size(), static_cast<T>(*condition.alpha));
          if (rate && condition.frozen) be_.fill(t.data(), t.size(), T(0));
        },
        *params_);
  }

  std::vector<Gate> gates() override {
    std::vector<Gate> all;
    for_each_tensor(
        [&](std::string_view name, const auto& t) {
          if (!name.ends_with("gating_alpha")) return;
          all.push_back({detail::layer_in(name), {}});
          for (const T alpha : detail::on_host(be_, t))
            all.back().opening.push_back(std::tanh(static_cast<double>(alpha)));
        },
        *params_);
    return all;
  }

  Listened listen(const std::vector<std::int32_t>& codes, bool probe) override {
    return mttt::listen<Model>(be_, *params_, codes, {.reset_ttt_every = reset_every_, .probe = probe});
  }

  Talked talk(const CodedRecording& recording, const TalkOptions& options) override {
    Conversation talk(*this);
    const auto learned = fast_weights(talk.state);
    talk.start(options.seed);
    Talked all;
    all.state_mb = static_cast<double>(talk.state.bytes()) * 1e-6;
    const Index frames = options.frames > 0 ? options.frames : recording.frames;
    // What is kept here must not look like memory that the model takes: all of it is touched before.
    all.said.assign(static_cast<std::size_t>(frames * spoken), 0), all.said.clear();
    all.seconds.assign(static_cast<std::size_t>(frames), 0), all.seconds.clear();
    std::vector<std::int32_t> said(static_cast<std::size_t>(spoken));
    for (Index t = 0; t < frames; ++t) {
      if (reset_every_ > 0 && t > 0 && t % reset_every_ == 0)
        detail::reset_ttt<Transformer>(be_, params_->transformer, talk.state->transformer);
      for (Index k = 0; k < heard_streams; ++k)
        talk.heard[static_cast<std::size_t>(k)] =
            recording.stream(spoken + k)[static_cast<std::size_t>(t % recording.frames)];
      const auto start = std::chrono::steady_clock::now();
      talk.step(options.gen, said);
      all.seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      all.said.insert(all.said.end(), said.begin(), said.end());
      if (options.look_every > 0 && ((t + 1) % options.look_every == 0 || t + 1 == frames))
        all.looks.push_back({t + 1, drift_from(learned, fast_weights(talk.state)), resident_mb()});
    }
    return all;
  }

  CodeLogits predict_offline(const std::vector<std::int32_t>& codes) override {
    const auto scope = be_.scope();
    const Index frames = static_cast<Index>(codes.size()) / streams;
    const auto there = be_.template make<std::int32_t, dyn, dyn, dyn>(1, streams, frames);
    be_.to_device(codes.data(), there.data(), there.size());
    typename Model::Saved saved;
    const auto out = Model::forward(be_, *params_, there, saved);
    CodeLogits all = empty(frames);
    all.of[0] = as_float(detail::on_host(be_, out.text_logits));
    for (Index k = 0; k < C.dep_q; ++k) {
      const Sequence<T, C.card> one(out.logits[k].data(), {1, frames, C.card});
      all.of[static_cast<std::size_t>(1 + k)] = as_float(detail::on_host(be_, one));
    }
    return all;
  }

  /// Through LMGen, which a conversation runs on: what it would say is forced to be what was said.
  CodeLogits predict_streamed(const std::vector<std::int32_t>& codes) override {
    const Index frames = static_cast<Index>(codes.size()) / streams;
    const auto code = [&](Index k, Index t) {
      return t < 0 ? C.initial().of(k) : codes[static_cast<std::size_t>(k * frames + t)];
    };
    CodeLogits all = empty(frames);
    Conversation talk(*this);
    talk.start(1);
    std::vector<std::int32_t> said(static_cast<std::size_t>(spoken));
    for (Index t = 0; t < frames; ++t) {
      const auto scope = be_.scope();
      typename Gen::Taps taps;
      const auto forced = be_.template make<std::int32_t, dyn, spoken>(1);
      taps.text_logits = be_.template make<T, dyn, C.text_card>(1);
      taps.logits = be_.template make<T, dyn, dyn, C.card>(C.dep_q, 1);
      std::vector<std::int32_t> now;
      for (Index k = 0; k < spoken; ++k) now.push_back(code(k, t - C.delays.of[k]));
      be_.to_device(now.data(), forced.data(), forced.size());
      taps.forced = forced;
      for (Index k = 0; k < heard_streams; ++k)  // LMGen reads in its next frame what is heard in this one
        talk.heard[static_cast<std::size_t>(k)] = t == 0 ? zero_code : code(spoken + k, t - 1);
      talk.step({}, said, taps);
      put(all, 0, t, as_float(detail::on_host(be_, taps.text_logits)));
      const auto audio = as_float(detail::on_host(be_, taps.logits));
      for (Index k = 0; k < C.dep_q; ++k)
        put(all, 1 + k, t, {audio.begin() + k * C.card, audio.begin() + (k + 1) * C.card});
    }
    return all;
  }

 private:
  /// One session of LMGen.
  struct Conversation {
    explicit Conversation(SubjectOf& subject)
        : of(subject),
          state(subject.be_, 1),
          heard(static_cast<std::size_t>(heard_streams)),
          input(subject.be_, 1),
          output(subject.be_, 1) {
      Gen::reset(of.be_, *of.params_, *state, Mask{});
    }
    void start(std::int64_t seed) {
      const auto scope = of.be_.scope();
      const auto seeds = of.be_.template make<std::int64_t, dyn>(1);
      of.be_.to_device(&seed, seeds.data(), Index{1});
      Gen::reset(of.be_, *of.params_, *state, Mask{}, seeds);
    }
    void step(const GenOptions& options, std::vector<std::int32_t>& said,
              const typename Gen::Taps& taps = {}) {
      of.be_.to_device(heard.data(), input->codes.data(), input->codes.size());
      Gen::step(of.be_, *of.params_, *state, input->codes, output->codes, options, Mask{}, taps);
      of.be_.to_host(output->codes.data(), said.data(), output->codes.size());
    }
    template <Index Width>
    struct Row {
      Tensor<std::int32_t, dyn, Width> codes;
      static void visit(auto&& f, auto&&... r) { f("codes", r.codes...); }
    };
    SubjectOf& of;
    Store<typename Gen::State, B> state;
    std::vector<std::int32_t> heard;
    Store<Row<heard_streams>, B> input;
    Store<Row<spoken>, B> output;
  };

  std::vector<std::vector<A>> fast_weights(const Store<typename Gen::State, B>& state) {
    std::vector<std::vector<A>> all;
    if constexpr (Transformer::with_ttt > 0)
      for (const auto& layer : state->transformer.learning)
        all.push_back(detail::on_host(be_, layer.ttt.weights));
    return all;
  }
  static std::vector<double> drift_from(const std::vector<std::vector<A>>& start,
                                        const std::vector<std::vector<A>>& now) {
    std::vector<double> drift;
    for (std::size_t l = 0; l < start.size(); ++l) {
      double moved = 0, size = 0;
      for (std::size_t i = 0; i < start[l].size(); ++i) {
        const auto w = static_cast<double>(start[l][i]), by = static_cast<double>(now[l][i]) - w;
        moved += by * by, size += w * w;
      }
      drift.push_back(std::sqrt(moved / size));
    }
    return drift;
  }

  static CodeLogits empty(Index frames) {
    CodeLogits all{frames, {}, {}};
    for (Index k = 0; k < spoken; ++k) {
      all.cards.push_back(k == 0 ? C.text_card : C.card);
      all.of.emplace_back(static_cast<std::size_t>(frames * all.cards.back()), 0.0f);
    }
    return all;
  }
  /// What stream k was expected to say at position t belongs to frame t - delay.
  static void put(CodeLogits& all, Index k, Index t, const std::vector<float>& row) {
    const Index frame = t - C.delays.of[k];
    if (frame >= 0)
      std::copy(row.begin(), row.end(),
                all.of[static_cast<std::size_t>(k)].begin() + frame * all.cards[static_cast<std::size_t>(k)]);
  }
  static std::vector<float> as_float(const std::vector<T>& from) {
    std::vector<float> to;
    to.reserve(from.size());
    for (const T value : from) to.push_back(static_cast<float>(value));
    return to;
  }

  B be_;
  Store<typename Model::Params, B> params_{be_};
  std::map<std::string, std::vector<T>> learned_;  // gates and inner rates
  Index reset_every_ = 0;
};

}  // namespace diagnose
