// Recordings to codes, or through the codec and back, for any configuration. Each preset is compiled in a file
// of its own, beside this one.
#pragma once

#include <chrono>
#include <exception>
#include <optional>
#include <set>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../backend.hpp"
#include "mttt/data/interleaver.hpp"
#include "mttt/io/alignment.hpp"
#include "mttt/io/codes.hpp"
#include "mttt/io/manifest.hpp"
#include "mttt/io/text.hpp"
#include "options.hpp"
#include "recordings.hpp"

namespace mttt::encoding {

namespace fs = std::filesystem;

struct Job {
  std::filesystem::path recording, codes;
};

template <mttt::MimiConfig C>
struct Encode {
  using B = Device<float>;
  using Codec = mttt::Mimi<C, B>;
  using Index = mttt::Index;
#ifdef MTTT_EXAMPLES_CUDA
  static constexpr Index frames_at_once = 250;  // frames of a recording: launches cost more than memory
#else
  static constexpr Index frames_at_once = 25;
#endif

  /// What was made of this very recording by this very codec and level, if it is there and whole.
  static std::optional<CodedRecording> find_codes(const fs::path& path, const std::string& codec,
                                                  const std::string& source, double level) {
    if (!fs::exists(path)) return std::nullopt;
    try {
      auto codes = load_codes(path);
      if (codes.codec == codec && codes.source == source && codes.activity && codes.activity->level == level)
        return codes;
    } catch (const Error& error) {
      std::printf("%s; it is made again\n", error.what());
    }
    return std::nullopt;
  }

  /// Bits a code of every stream: a codec that has collapsed onto a few codes shows here.
  static void print_entropy(const std::vector<std::vector<std::int32_t>>& streams, int text_card) {
    std::printf("entropy, bits a code\n  text            %.2f of at most %.2f", entropy(streams[0]),
                std::log2(text_card));
    for (std::size_t k = 1; k < streams.size(); ++k) {
      if (k % Codec::n_q == 1) std::printf("\n  %s  ", k == 1 ? "model's voice" : "user's voice ");
      std::printf(" %.2f", entropy(streams[k]));
    }
    std::printf(" of at most %.2f\n", std::log2(Codec::card));
  }

  /// What all recordings are encoded with.
  struct Encoder {
    const typename Codec::Params& params;
    const typename Codec::Codebooks& books;
    const TextTokenizer& tokenizer;
    std::string id;
    const Options& options;

    CodedRecording operator()(B& be, const fs::path& path, const std::string& source) const {
      constexpr Index n_q = Codec::n_q;
      constexpr double rate = Codec::config.frame_rate();
      const auto voices = read_voices(path, options.mono);
      const Index samples = static_cast<Index>(voices.size()) / 2, frames = Codec::frames_of(samples);
      std::vector<std::int32_t> text(static_cast<std::size_t>(frames), -1);
      if (!options.mono || fs::exists(sidecar_of(path))) {
        const auto encode_word = [&](const std::string& word) { return tokenizer.encode(word); };
        text = text_stream(read_alignment(sidecar_of(path)), frames, rate, encode_word,
                           {.keep_main_only = true});
      }
      const auto scope = be.scope();
      const auto pcm = be.template make<float, dyn, dyn, 1>(2, samples);
      be.to_device(voices.data(), pcm.data(), pcm.size());
      const auto codes = be.template make<std::int32_t, dyn, dyn, dyn>(2, n_q, frames);
      Codec::encode_recording(be, params, books, pcm, codes, frames_at_once);
      CodedRecording recording{1 + 2 * n_q, frames, text,  rate, tokenizer.vocab_size(),
                               Codec::card, id,     source};
      const std::span<const float> sound(voices);
      recording.activity = speech_activity(
          sound.first(static_cast<std::size_t>(samples)), sound.subspan(static_cast<std::size_t>(samples)),
          static_cast<std::size_t>(Codec::frame_size), options.silence_level);
      recording.codes.resize(static_cast<std::size_t>(frames + codes.size()));
      be.to_host(codes.data(), recording.codes.data() + frames, codes.size());
      return recording;
    }
  };

  /// The recordings of a manifest, or those of the command line.
  static std::vector<Job> jobs_of(const Options& options) {
    std::vector<Job> jobs;
    for (const auto& path : options.recordings)
      jobs.push_back({path, options.output / path.stem().concat(".safetensors")});
    if (options.data.empty()) return jobs;
    for (const auto& source : read_data_sources(options.data)) {
      if (source.entries.empty())
        fail(source.path.string(), "codes", "a manifest of recordings", "there is nothing left to encode");
      for (const auto& entry : source.entries) jobs.push_back({entry.recording, entry.codes});
    }
    return jobs;
  }

  /// Writes what the codec makes of each voice, and says how near it came and how long it took.
  static int reply(B& be, const typename Codec::Params& params, const typename Codec::Codebooks& books,
                   const std::vector<Job>& jobs, const Options& options) {
    mttt::make_folders(options.output);
    double heard = 0, took = 0;
    for (const Job& job : jobs) {
      const mttt::Audio sound = resample(mttt::read_audio(job.recording), codec_rate);
      const auto samples = static_cast<Index>(sound.frames());
      const Index frames = Codec::frames_of(samples), voices = sound.channels;
      const auto scope = be.scope();
      const Index replied = frames * Codec::frame_size;
      std::vector<float> heard_by_voice(static_cast<std::size_t>(voices * samples)),
          reply_by_voice(static_cast<std::size_t>(voices * replied));
      for (Index i = 0; i < voices * samples; ++i)
        heard_by_voice[static_cast<std::size_t>(i % voices * samples + i / voices)] =
            sound.samples[static_cast<std::size_t>(i)];
      const auto start = std::chrono::steady_clock::now();
      const auto pcm = be.template make<float, dyn, dyn, 1>(voices, samples);
      const auto back = be.template make<float, dyn, dyn, 1>(voices, replied);
      const auto codes = be.template make<std::int32_t, dyn, dyn, dyn>(voices, Codec::n_q, frames);
      be.to_device(heard_by_voice.data(), pcm.data(), pcm.size());
      Codec::encode_recording(be, params, books, pcm, codes, frames_at_once);
      Codec::decode_recording(be, params, books, codes, back, frames_at_once);
      be.to_host(back.data(), reply_by_voice.data(), back.size());
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      mttt::Audio answer{std::vector<float>(sound.samples.size()), sound.channels, codec_rate};
      double signal = 0, error = 0;
      for (Index i = 0; i < voices * samples; ++i) {
        const float x = sound.samples[static_cast<std::size_t>(i)],
                    y = reply_by_voice[static_cast<std::size_t>(i % voices * replied + i / voices)];
        answer.samples[static_cast<std::size_t>(i)] = std::clamp(y, -1.0f, 1.0f);
        signal += double(x) * double(x), error += double(x - y) * double(x - y);
      }
      const auto path = options.output / job.recording.stem().concat(".wav");
      mttt::write_audio(path, answer);
      const double seconds = static_cast<double>(voices * samples) / codec_rate;
      heard += seconds, took += time.count();
      std::printf("%s: %.1f s, %.2f dB, %.1f times real time\n", path.c_str(), seconds,
                  10 * std::log10(signal / error), seconds / time.count());
    }
    std::printf("%.0f s of sound, %.1f times real time\n", heard, heard / took);
    return 0;
  }

  static int run(const Options& options) {
    B be;
    const auto jobs = jobs_of(options);
    if (options.init_codec && !fs::exists(options.codec)) {
      std::vector<fs::path> recordings;
      for (const auto& job : jobs) recordings.push_back(job.recording);
      write_untrained_codec<mttt::Mimi<C, Host>, Host>(
          options.codec, *options.init_codec, options.preset, recordings, [&](const fs::path& path) {
            try {
              return read_voices(path, options.mono);
            } catch (const Error&) {
              if (options.data.empty()) throw;
              return std::vector<float>();  // told when it is its turn to be encoded
            }
          });
    }
    Store<typename Codec::Params, B> params(be);
    load_params(options.codec, be, params);
    Store<typename Codec::Codebooks, B> books(be);
    Codec::derive(be, *params, *books);
    wait_for(be);  // others read these
    if (options.reply) return reply(be, *params, *books, jobs, options);
    const auto tokenizer = TextTokenizer::load(options.tokenizer);
    const Encoder encoder{*params, *books, tokenizer,
                          content_id(std::vector{options.codec, options.tokenizer}), options};

    const auto about = SafetensorsFile(options.codec).metadata();
    if (const auto training = about.find("training"); training != about.end())
      std::printf("%s: training of this codec: %s\n", options.codec.c_str(), training->second.c_str());
    for (const auto& job : jobs) make_folders(job.codes.parent_path());

    std::vector<std::vector<std::int32_t>> streams(1 + 2 * Codec::n_q);  // of all recordings
    const bool manifest = !options.data.empty();
    double seconds = 0;
    std::size_t done = 0, broken = 0;
    std::exception_ptr stop;  // what no recording is to blame for, or the first fault without a manifest
    const auto begin = std::chrono::steady_clock::now();
    const auto one = [&](B& worker, const Job& job) {
      const auto start = std::chrono::steady_clock::now();
      auto files = std::vector{job.recording};
      if (!options.mono || fs::exists(sidecar_of(job.recording))) files.push_back(sidecar_of(job.recording));
      const std::string source = content_id(files);
      auto recording = find_codes(job.codes, encoder.id, source, options.silence_level);
      const bool unchanged = recording.has_value();
      if (!unchanged) {
        recording = encoder(worker, job.recording, source);
        save_codes(job.codes, *recording);
      }
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start,
                                          all = std::chrono::steady_clock::now() - begin;
#pragma omp critical
      {
        ++done;
        const auto text = recording->stream(0);
        const auto words =
            std::count_if(text.begin(), text.end(), [](std::int32_t code) { return code > 3; });
        std::printf("%3zu/%zu %s: %td frames, ", done + broken, jobs.size(), job.codes.c_str(),
                    recording->frames);
        if (unchanged) {
          std::printf("unchanged\n");
        } else {
          std::printf("%td tokens of text, %.2f s; %s left\n", words, took.count(),
                      duration_text(all.count() / static_cast<double>(done + broken) *
                                    static_cast<double>(jobs.size() - done - broken))
                          .c_str());
        }
        std::fflush(stdout);
        seconds += static_cast<double>(recording->frames) / recording->frame_rate;
        for (Index k = 0; k < recording->streams; ++k) {
          const auto codes = recording->stream(k);
          auto& stream = streams[static_cast<std::size_t>(k)];
          stream.insert(stream.end(), codes.begin(), codes.end());
        }
      }
    };
    int at_once = 1;
#ifdef _OPENMP
    at_once = options.jobs > 0 ? options.jobs : omp_get_max_threads();
#endif
    at_once = static_cast<int>(std::min<std::size_t>(static_cast<std::size_t>(at_once), jobs.size()));
#pragma omp parallel num_threads(at_once) if (at_once > 1)
    {
      B worker;
#pragma omp for schedule(dynamic, 1)
      for (std::size_t i = 0; i < jobs.size(); ++i) {
        bool wanted;
#pragma omp critical
        wanted = stop == nullptr;
        if (!wanted) continue;
        try {
          one(worker, jobs[i]);
        } catch (const Error& error) {
#pragma omp critical
          {
            if (!manifest && stop == nullptr) stop = std::current_exception();
            ++broken;
            if (manifest) std::printf("%3zu/%zu left out: %s\n", done + broken, jobs.size(), error.what());
          }
        } catch (...) {
#pragma omp critical
          stop = std::current_exception();
        }
      }
    }
    if (stop != nullptr) std::rethrow_exception(stop);
    std::printf("%.0f s of conversation\n", seconds);
    if (broken > 0) std::printf("%zu of %zu recordings were left out\n", broken, jobs.size());
    if (done == 0) return 1;
    print_entropy(streams, tokenizer.vocab_size());
    return 0;
  }
};

}  // namespace mttt::encoding
