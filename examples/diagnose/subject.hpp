// The model under examination, whatever its configuration: what the commands of `diagnose` ask of it. Each
// preset is compiled in a file of its own, beside this one (subject_define.hpp).
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mttt/data/codes.hpp"
#include "mttt/lm/causality.hpp"
#include "mttt/lm/listen.hpp"
#include "mttt/lm/lm_gen.hpp"

/// What the model is.
struct Facts {
  std::string preset, dtype, device, checkpoint, placement;
  mttt::Index num_layers = 0, dep_q = 0, mini_batch = 0, context = 0;
  std::vector<mttt::Index> ttt_layers;
  mttt::CodeOrder order;
  std::int32_t text_padding = 0, end_of_text_padding = 0;

  bool is_word(std::int32_t code) const {
    return code >= 0 && code != text_padding && code != end_of_text_padding;
  }
};

/// How it is to be, until the next word.
struct Condition {
  std::string name = "as trained";
  std::optional<double> alpha = {};  // of all gates
  bool frozen = false;               // its fast weights stay at W_0
  mttt::Index reset_every = 0;       // frames after which they are W_0 again; 0: never
};

struct TalkOptions {
  mttt::GenOptions gen;
  mttt::Index frames = 0;  // the recording is heard over and over until then; 0: once
  std::int64_t seed = 1;
  mttt::Index look_every = 0;  // frames between two looks at the state; 0: none
};

/// A look at the state of a long conversation.
struct Look {
  mttt::Index frame;
  std::vector<double> drift;  // |W - W_0| / |W_0| of each TTT layer
  double memory_mb;           // of the process
};

/// A conversation: what the model said to the voice that it heard.
struct Talked {
  std::vector<std::int32_t> said;  // (frames, 1 + dep_q); -2 while the delays fill
  std::vector<double> seconds;     // of each frame
  std::vector<Look> looks;
  double state_mb = 0;
};

struct Gate {
  mttt::Index layer;
  std::vector<double> opening;  // tanh(alpha) of each channel
};

class Subject {
 public:
  virtual ~Subject() = default;
  Facts facts;

  virtual void become(const Condition&) = 0;
  virtual std::vector<Gate> gates() = 0;
  /// Teacher-forced, as a stream.
  virtual mttt::Listened listen(const std::vector<std::int32_t>& codes, bool probe) = 0;
  virtual Talked talk(const mttt::CodedRecording&, const TalkOptions&) = 0;
  /// The predictions of a pass over all frames at once, and of a stream, frame by frame.
  virtual mttt::CodeLogits predict_offline(const std::vector<std::int32_t>& codes) = 0;
  virtual mttt::CodeLogits predict_streamed(const std::vector<std::int32_t>& codes) = 0;
};

/// The model of a checkpoint, or of a run's folder.
std::unique_ptr<Subject> load_subject(const std::filesystem::path& model, const std::string& dtype);

std::unique_ptr<Subject> subject_tiny(const std::filesystem::path& checkpoint);
std::unique_ptr<Subject> subject_tiny_without_ttt(const std::filesystem::path& checkpoint);
std::unique_ptr<Subject> subject_moshi_small(const std::filesystem::path& checkpoint);  // MTTT_ALL_PRESETS
// On CUDA:
std::unique_ptr<Subject> subject_tiny_bf16(const std::filesystem::path& checkpoint);
std::unique_ptr<Subject> subject_moshi_small_bf16(const std::filesystem::path& checkpoint);
