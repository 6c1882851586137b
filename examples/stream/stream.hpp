// Streaming, for any configuration of the model. Each preset is compiled in a file of its own, beside this
// one.
#pragma once

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/io/audio.hpp"
#include "mttt/io/checkpoint.hpp"
#include "mttt/io/model_config.hpp"
#include "mttt/io/text.hpp"
#include "mttt/lm/gates.hpp"
#include "mttt/lm/lm_gen.hpp"
#include "mttt/presets/mimi.hpp"
#include "options.hpp"

namespace mttt {

/// Everything of a conversation that outlives a frame: saved as one file, it resumes tomorrow.
template <class Codec, class Gen>
struct Conversation {
  typename Codec::EncoderState ears;
  typename Gen::State mind;
  typename Codec::DecoderState voice;
  static void visit(auto&& f, auto&&... c) {
    f("encoder", c.ears...);
    f("lm", c.mind...);
    f("decoder", c.voice...);
  }
};

/// The p-th part of the sorted times, in milliseconds.
inline double percentile(std::vector<double> seconds, double p) {
  std::sort(seconds.begin(), seconds.end());
  return seconds.empty()
             ? 0
             : 1e3 * seconds[static_cast<std::size_t>(p * static_cast<double>(seconds.size() - 1))];
}

/// TTT's share of the residual stream, measured by a pass over the codes that were streamed.
template <MoshiConfig C, class B>
nlohmann::json contributions(B& be, const typename Moshi<C, B>::Params& params,
                             const std::vector<std::int32_t>& codes) {
  using Model = Moshi<C, B>;
  nlohmann::json list = nlohmann::json::array();
  if constexpr (C.temporal.num_ttt_layers() > 0) {
    const auto scope = be.scope();
    typename Model::Saved saved;
    Model::forward(be, params,
                   {codes.data(), {1, C.streams(), static_cast<Index>(codes.size()) / C.streams()}}, saved);
    for (const auto& c : ttt_contributions<typename Model::Transformer>(
             be, params.transformer, saved.transformer, C.temporal.ttt_layers)) {
      list.push_back({{"layer", c.layer}, {"gate_opening", c.opening}, {"share_of_stream", c.share}});
    }
  }
  return list;
}

}  // namespace mttt

template <mttt::MoshiConfig C>
int stream(const Options& options) {
  using namespace mttt;
  using B = Cpu<float>;
  using Codec = Mimi<presets::mimi_tiny, B>;
  using Gen = LMGen<C, B>;
  using State = Conversation<Codec, Gen>;
  static_assert(Codec::card == C.card, "the codec and the language model must agree on the codes");
  B be;

  // What was learned: codec, language model, tokenizer.
  Store<typename Codec::Params, B> codec(be);
  load_params(options.codec, be, codec);
  Store<typename Codec::Codebooks, B> books(be);
  Codec::derive(be, *codec, *books);
  Store<typename Gen::Params, B> params(be);
  LoadOptions load;
  if (options.without_ttt) {
    load.ignore_extra = [](std::string_view name) {
      return name.find(".ttt.") != name.npos || name.ends_with("gating_alpha");
    };
  }
  load_params(options.checkpoint, be, params, load);
  if (options.gating_alpha) force_gating_alpha(be, *params, *options.gating_alpha);
  const auto tokenizer = TextTokenizer::load(options.tokenizer);

  // The conversation, fresh or where it was left.
  Store<State, B> state(be, 1);
  const auto config = config_json<C>("tiny");
  Codec::reset_encoder(be, *codec, state->ears);
  Codec::reset_decoder(be, *codec, state->voice);
  auto seeds = be.make<std::int64_t, dyn>(1);
  seeds(0) = options.seed;
  Gen::reset(be, *params, state->mind, Mask{}, seeds);
  if (options.context > 0) set_context(be, state->mind, options.context);
  if (!options.load_state.empty()) load_state(options.load_state, be, state, config);

  // Frame by frame, 80 ms each: hear, think, speak.
  auto heard_sound =
      load_mono(options.input, static_cast<int>(Codec::config.sample_rate), Convert::yes).samples;
  const Index size = Codec::frame_size, frames = Codec::frames_of(static_cast<Index>(heard_sound.size()));
  heard_sound.resize(static_cast<std::size_t>(frames * size));
  Audio reply{{}, 1, static_cast<int>(Codec::config.sample_rate)};
  std::vector<std::int32_t> stream_codes(static_cast<std::size_t>(C.streams() * frames), zero_code);
  std::vector<int> text;
  nlohmann::json tokens = nlohmann::json::array();
  std::vector<double> seconds;
  const auto pcm = be.make<float, dyn, dyn, 1>(1, size), voice = be.make<float, dyn, dyn, 1>(1, size);
  const auto heard = be.make<std::int32_t, dyn, Gen::heard_streams>(1);
  const auto said = be.make<std::int32_t, dyn, Gen::spoken>(1);
  for (Index t = 0; t < frames; ++t) {
    const auto start = std::chrono::steady_clock::now();
    be.to_device(heard_sound.data() + t * size, pcm.data(), size);
    Codec::encode_step(be, *codec, *books, state->ears, pcm, {heard.data(), {1, Gen::heard_streams, 1}});
    Gen::step(be, *params, state->mind, heard, said, options.gen);
    const bool complete = said(0, 0) != ungenerated_code;  // the first frames only fill the delays
    if (complete) {
      Codec::decode_step(be, *codec, *books, state->voice, {said.data() + 1, {1, C.dep_q, 1}}, voice);
      reply.samples.insert(reply.samples.end(), voice.data(), voice.data() + size);
    }
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());

    for (Index k = 0; k < C.streams(); ++k) {
      const std::int32_t code = k < Gen::spoken ? said(0, k) : heard(0, k - Gen::spoken);
      stream_codes[static_cast<std::size_t>(k * frames + t)] = code == ungenerated_code ? zero_code : code;
    }
    if (!complete) continue;
    tokens.push_back(std::vector<std::int32_t>(said.data(), said.data() + Gen::spoken));
    if (said(0, 0) != C.existing_text_padding_id && said(0, 0) != C.existing_text_end_padding_id) {
      text.push_back(said(0, 0));
    }
  }
  if (!options.save_state.empty()) save_state(options.save_state, be, state, config);

  // What came of it.
  write_audio(options.output, reply, SampleFormat::pcm16);
  const std::string words = tokenizer.decode(text);
  std::printf("%s\n", words.c_str());
  if (!options.transcript.empty()) write_file_atomically(options.transcript, words + "\n");
  double total = 0;
  for (const double s : seconds) total += s;
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  const double audio_seconds =
      static_cast<double>(frames * size) / static_cast<double>(Codec::config.sample_rate);
  const double factor = total / audio_seconds;
  std::fprintf(stderr, "%td frames, %.2f ms a frame (p50), %.2f (p99), %.3f of real time, %ld MB\n", frames,
               percentile(seconds, 0.5), percentile(seconds, 0.99), factor, usage.ru_maxrss * 1024 / 1000000);
  if (!options.json.empty()) {
    const nlohmann::json result = {
        {"frames", frames},
        {"ms_per_frame", {{"p50", percentile(seconds, 0.5)}, {"p99", percentile(seconds, 0.99)}}},
        {"real_time_factor", factor},
        {"peak_memory_mb", static_cast<double>(usage.ru_maxrss) * 1024e-6},
        {"state_bytes", state.bytes()},
        {"ttt", contributions<C>(be, *params, stream_codes)},
        {"text", words},
        {"tokens", tokens}};
    write_file_atomically(options.json, result.dump(1) + "\n");
  }
  return 0;
}
