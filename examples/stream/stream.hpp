// Streaming, for any configuration of the model and of its codec. Each pair is compiled in a file of its own,
// beside this one.
#pragma once

#include <sys/resource.h>

#include <chrono>

#include "../backend.hpp"
#include "../memory.hpp"
#include "../words.hpp"
#include "codec.hpp"
#include "mttt/io/model_config.hpp"
#include "mttt/lm/duplex.hpp"
#include "mttt/lm/gates.hpp"
#include "options.hpp"

namespace mttt {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// The p-th part of the sorted times, in milliseconds.
inline double percentile(std::vector<double> seconds, double p) {
  std::sort(seconds.begin(), seconds.end());
  return seconds.empty()
             ? 0
             : 1e3 * seconds[static_cast<std::size_t>(p * static_cast<double>(seconds.size() - 1))];
}

/// TTT's share of the residual stream, measured by a pass over the codes that were streamed, frame after
/// frame.
template <MoshiConfig C, class B>
nlohmann::json contributions(B& be, const typename Moshi<C, B>::Params& params,
                             const std::vector<std::int32_t>& codes) {
  using Model = Moshi<C, B>;
  nlohmann::json list = nlohmann::json::array();
  if constexpr (C.temporal.num_ttt_layers() > 0) {
    const Index streams = C.streams(), frames = static_cast<Index>(codes.size()) / streams;
    if (frames == 0) return list;
    std::vector<std::int32_t> by_stream(codes.size());
    for (Index t = 0; t < frames; ++t) {
      for (Index k = 0; k < streams; ++k)
        by_stream[static_cast<std::size_t>(k * frames + t)] =
            codes[static_cast<std::size_t>(t * streams + k)];
    }
    const auto scope = be.scope();
    typename Model::Saved saved;
    const auto streamed = be.template make<std::int32_t, dyn, dyn, dyn>(1, streams, frames);
    be.to_device(by_stream.data(), streamed.data(), streamed.size());
    Model::forward(be, params, streamed, saved);
    for (const auto& c : ttt_contributions<typename Model::Transformer>(
             be, params.transformer, saved.transformer, C.temporal.ttt_layers)) {
      list.push_back({{"layer", c.layer}, {"gate_opening", c.opening}, {"share_of_stream", c.share}});
    }
  }
  return list;
}

/// A preset as it streams fastest here.
#ifdef MTTT_EXAMPLES_CUDA
template <MoshiConfig C>
inline constexpr MoshiConfig streamed = C;
#else
template <MoshiConfig C>
inline constexpr MoshiConfig streamed = C.for_cpu_streams();
#endif

/// What was learned and one conversation. The language model is on backend `On`; the codec computes in float32.
template <MoshiConfig C, MimiConfig M, class On>
struct Conversation {
  using B = On;
  using Codec = ::Codec<M>;
  using Gen = LMGen<C, B>;
  using Talk = Duplex<Codec, Gen, B>;

  static double bytes() {
    return bytes_of<typename Gen::Params>() + bytes_of<typename Talk::State>() +
           bytes_of<typename Codec::Params>() + bytes_of<typename Codec::Codebooks>();
  }

  Conversation(const Options& options, const Model& found) {
    LoadOptions load;
    if (options.without_ttt) load.ignore_extra = is_ttt_name;
    Codec::load(found.files, codec_be, codec, books);
    load_moshi<C>(found.files, be, params, load);
    if (options.gating_alpha) force_gating_alpha(be, *params, *options.gating_alpha);

    const auto scope = be.scope();
    const auto seeds = be.template make<std::int64_t, dyn>(1);
    be.to_device(&options.seed, seeds.data(), Index{1});
    Talk::reset(be, models(), *state, Mask{}, seeds);
    if (options.context > 0) set_context(be, state->lm, options.context);
    if (!options.load_state.empty()) load_state(options.load_state, be, state, config_json<C>(found.preset));
  }
  typename Talk::Models models() const { return {*codec, *books, *params}; }

  B be;
  using CodecBackend = typename Codec::Backend;
  CodecBackend codec_be = CodecBackend(be.template as<float>());
  Store<typename Codec::Params, CodecBackend> codec{codec_be};
  Store<typename Codec::Codebooks, CodecBackend> books{codec_be};
  Store<typename Gen::Params, B> params{be};
  Store<typename Talk::State, B> state{be, 1};
};

/// What came of a conversation.
struct Said {
  std::vector<std::int32_t> codes;  // heard and said, frame after frame, if somebody wants to know
  nlohmann::json tokens = nlohmann::json::array();
  std::vector<double> seconds;  // of each frame, from its last sample to its reply
};

/// Frame by frame, 80 ms each: hear, think, speak. Until the sound ends, or its listener has gone.
template <MoshiConfig C, MimiConfig M, class B>
Said converse(Conversation<C, M, B>& talk, Microphone& microphone, Speaker& speaker, Words& words,
              const Options& options) {
  using Types = Conversation<C, M, B>;
  using Talk = typename Types::Talk;
  constexpr Index spoken = Types::Gen::spoken;
  auto& be = talk.be;
  Host host;
  Store<typename Talk::Input, B> input(be, 1);
  Store<typename Talk::Output, B> output(be, 1);
  Store<typename Talk::Input, Host> question(host, 1);
  Store<typename Talk::Output, Host> answer(host, 1);
  question->active(0) = 1;
  const auto models = talk.models();
  auto frame = repeatable(be, [&] {
    auto in = *input;
    in.reset = {};  // the conversation starts once
    Talk::step(be, models, *talk.state, in, *output, options.gen);
  });
  const auto said = answer->said;
  const auto heard = answer->heard;
  Said all;
  while (!speaker.closed() && microphone.next(question->pcm.data())) {
    const Stopwatch watch;
    upload(be, question, input);
    frame();
    download(be, output, answer);
    const bool complete = said(0, 0) != ungenerated_code;  // the first frames only fill the delays
    speaker.say(answer->pcm.data(), complete);
    all.seconds.push_back(watch.seconds());

    const bool kept = !options.json.empty();  // else memory stays as it is, however long they talk
    for (Index k = 0; kept && k < C.streams(); ++k) {
      const std::int32_t code = k < spoken ? said(0, k) : heard(0, k - spoken);
      all.codes.push_back(code == ungenerated_code ? zero_code : code);
    }
    if (!complete) continue;
    if (kept) all.tokens.push_back(std::vector<std::int32_t>(said.data(), said.data() + spoken));
    if (said(0, 0) != C.existing_text_padding_id && said(0, 0) != C.existing_text_end_padding_id)
      words.hear(said(0, 0));
  }
  return all;
}

}  // namespace mttt

/// B: where the language model is, and what it stores.
template <mttt::MoshiConfig Preset, mttt::MimiConfig M, class B>
int stream(const Options& options, const Model& found) {
  using namespace mttt;
  constexpr MoshiConfig C = streamed<Preset>;
  using Types = Conversation<C, M, B>;
  using Codec = typename Types::Codec;
  const char* dtype = stored_in<B>();
  const int rate = static_cast<int>(Codec::config.sample_rate);
  Speaker speaker(options.output, options.raw, rate, Codec::frame_size);
  std::FILE* const text = speaker.raw() ? stderr : stdout;
  Words words(found.files.tokenizer, static_cast<int>(C.text_card), text);
  Microphone microphone(options.input, options.raw, rate, Codec::frame_size);

  expect_memory<B>(found.preset + " in " + dtype, Types::bytes(), dtype);
  const Stopwatch loading;
  Types talk(options, found);
  wait_for(talk.be);
  std::fprintf(stderr, "%s in %s, %.2f GB, from %s in %.1f s, on %s\n", found.preset.c_str(), dtype,
               1e-9 * Types::bytes(), found.files.moshi.c_str(), loading.seconds(), name_of(talk.be).c_str());

  const Interrupts interrupts;
  const Said said = converse(talk, microphone, speaker, words, options);
  std::fprintf(text, "\n");
  if (speaker.closed())
    std::fprintf(stderr, "nobody reads standard output any more: the conversation ends\n");
  if (!options.save_state.empty())
    save_state(options.save_state, talk.be, talk.state, config_json<C>(found.preset));

  // What came of it.
  speaker.finish();
  if (!options.transcript.empty()) write_file_atomically(options.transcript, words.all() + "\n");
  double total = 0;
  for (const double s : said.seconds) total += s;
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  const std::size_t frames = said.seconds.size();
  const double factor =
      frames == 0 ? 0 : total / (static_cast<double>(frames * Codec::frame_size) / static_cast<double>(rate));
  const double p50 = percentile(said.seconds, 0.5), p99 = percentile(said.seconds, 0.99);
  std::fprintf(stderr, "%zu frames, %.2f ms a frame (p50), %.2f (p99), %.3f of real time, %ld MB\n", frames,
               p50, p99, factor, usage.ru_maxrss * 1024 / 1000000);
  if (!options.json.empty()) {
    const nlohmann::json result = {{"frames", frames},
                                   {"ms_per_frame", {{"p50", p50}, {"p99", p99}}},
                                   {"real_time_factor", factor},
                                   {"peak_memory_mb", static_cast<double>(usage.ru_maxrss) * 1024e-6},
                                   {"state_bytes", talk.state.bytes()},
                                   {"ttt", contributions<C>(talk.be, *talk.params, said.codes)},
                                   {"text", words.all()},
                                   {"tokens", said.tokens}};
    write_file_atomically(options.json, result.dump(1) + "\n");
  }
  return 0;
}
