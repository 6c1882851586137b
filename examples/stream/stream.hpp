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

#include "../backend.hpp"
#include "mttt/io/audio.hpp"
#include "mttt/io/checkpoint.hpp"
#include "mttt/io/model_config.hpp"
#include "mttt/io/text.hpp"
#include "mttt/lm/duplex.hpp"
#include "mttt/lm/gates.hpp"
#include "mttt/presets/mimi.hpp"
#include "options.hpp"

namespace mttt {

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
    const auto streamed = be.template make<std::int32_t, dyn, dyn, dyn>(
        1, C.streams(), static_cast<Index>(codes.size()) / C.streams());
    be.to_device(codes.data(), streamed.data(), streamed.size());
    Model::forward(be, params, streamed, saved);
    for (const auto& c : ttt_contributions<typename Model::Transformer>(
             be, params.transformer, saved.transformer, C.temporal.ttt_layers)) {
      list.push_back({{"layer", c.layer}, {"gate_opening", c.opening}, {"share_of_stream", c.share}});
    }
  }
  return list;
}

}  // namespace mttt

/// T: what the language model stores.
template <mttt::MoshiConfig C, mttt::StorageType T>
int stream(const Options& options) {
  using namespace mttt;
  using B = Device<T>;
  using Codec = Mimi<presets::mimi_tiny, Device<float>>;
  using Gen = LMGen<C, B>;
  using Talk = Duplex<Codec, Gen, B>;
  B be;
  auto codec_be = be.template as<float>();
  Host host;

  // What was learned: codec, language model, tokenizer.
  Store<typename Codec::Params, Device<float>> codec(codec_be);
  load_params(options.codec, codec_be, codec);
  Store<typename Codec::Codebooks, Device<float>> books(codec_be);
  Codec::derive(codec_be, *codec, *books);
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
  const typename Talk::Models models{*codec, *books, *params};
  Store<typename Talk::State, B> state(be, 1);
  const auto config = config_json<C>("tiny");
  {
    const auto scope = be.scope();
    const auto seeds = be.template make<std::int64_t, dyn>(1);
    be.to_device(&options.seed, seeds.data(), Index{1});
    Talk::reset(be, models, *state, Mask{}, seeds);
  }
  if (options.context > 0) set_context(be, state->lm, options.context);
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
  Store<typename Talk::Input, B> input(be, 1);
  Store<typename Talk::Output, B> output(be, 1);
  Store<typename Talk::Input, Host> question(host, 1);
  Store<typename Talk::Output, Host> answer(host, 1);
  question->active(0) = 1;
  auto frame = repeatable(be, [&] {
    auto in = *input;
    in.reset = {};  // the conversation starts once
    Talk::step(be, models, *state, in, *output, options.gen);
  });
  const auto said = answer->said;
  const auto heard = answer->heard;
  for (Index t = 0; t < frames; ++t) {
    const auto start = std::chrono::steady_clock::now();
    std::copy_n(heard_sound.data() + t * size, size, question->pcm.data());
    upload(be, question, input);
    frame();
    download(be, output, answer);
    const bool complete = said(0, 0) != ungenerated_code;  // the first frames only fill the delays
    if (complete) reply.samples.insert(reply.samples.end(), answer->pcm.data(), answer->pcm.data() + size);
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
