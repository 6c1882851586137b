#include "voices.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "coder.hpp"
#include "mttt/core/error.hpp"
#include "resample.hpp"

extern "C" {
#include <flite/flite.h>
cst_voice* register_cmu_us_awb(const char*);
cst_voice* register_cmu_us_kal16(const char*);
cst_voice* register_cmu_us_rms(const char*);
cst_voice* register_cmu_us_slt(const char*);
}

namespace {
thread_local std::uint32_t noise = 1;
}

/// flite draws its noise here, in the place of the library's: a sentence sounds the same in any thread, at any time.
extern "C" int rand() noexcept {
  noise ^= noise << 13, noise ^= noise >> 17, noise ^= noise << 5;  // Marsaglia's xorshift
  return static_cast<int>(noise & RAND_MAX);
}

namespace {
/// Features are counted references without locks. Those of a voice outlive all threads: they need no count.
cst_voice* shared(cst_voice* voice) {
  for (cst_featvalpair* pair = voice->features->head; pair != nullptr; pair = pair->next) {
    auto* value = const_cast<cst_val*>(pair->val);
    if (value != nullptr && !cst_val_consp(value)) CST_VAL_REFCOUNT(value) = -1;
  }
  return voice;
}

cst_voice* base_voice(const std::string& base) {
  static const std::map<std::string, cst_voice*> voices = [] {
    flite_init();
    return std::map<std::string, cst_voice*>{{"awb", shared(register_cmu_us_awb(nullptr))},
                                             {"kal16", shared(register_cmu_us_kal16(nullptr))},
                                             {"rms", shared(register_cmu_us_rms(nullptr))},
                                             {"slt", shared(register_cmu_us_slt(nullptr))}};
  }();
  const auto found = voices.find(base);
  if (found == voices.end()) mttt::fail("voice " + base, "no such voice", "awb, kal16, rms or slt");
  return found->second;
}

double plain_pitch(const std::string& base) { return base == "slt" ? 172 : base == "awb" ? 125 : 100; }

/// The tokens of the text with the times of their first and last sound.
std::vector<mttt::Word> words_of(cst_utterance* utterance) {
  std::vector<mttt::Word> words;
  for (cst_item* token = relation_head(utt_relation(utterance, "Token")); token; token = item_next(token)) {
    cst_item *first = item_daughter(token), *last = item_last_daughter(token);
    if (first == nullptr) continue;
    const double start = ffeature_float(first, "R:SylStructure.daughter1.daughter1.R:Segment.p.end");
    const double end = ffeature_float(last, "R:SylStructure.daughtern.daughtern.R:Segment.end");
    const std::string text = plain_word(item_feat_string(token, "name"));
    if (!text.empty() && end > start) words.push_back({text, start, end, ""});
  }
  return words;
}
}  // namespace

std::string Voice::name() const {
  char text[64];
  std::snprintf(text, sizeof text, "%s-%.2f-%.0f-%.2f", base.c_str(), tract, pitch, pace);
  return text;
}

const Voice& model_voice() {
  static const Voice voice{"slt", 1, plain_pitch("slt"), 1};
  return voice;
}

std::vector<Voice> user_voices(bool held_out) {
  std::vector<Voice> voices;
  const std::vector<std::string> bases =
      held_out ? std::vector<std::string>{"awb"} : std::vector<std::string>{"rms", "kal16", "slt"};
  constexpr double tracts[] = {1, 1.08, 0.93, 1.04, 0.96}, paces[] = {1, 1.15, 0.88},
                   pitches[] = {1, 1.12, 0.92, 1.2, 0.85};
  for (int i = 0; i < 15; ++i) {
    for (const auto& base : bases) {
      const double tract = tracts[i % 5];
      if (base == model_voice().base && tract == 1) continue;
      voices.push_back({base, tract, std::round(plain_pitch(base) * tract * pitches[(i + i / 5) % 5]),
                        paces[(i + i / 5) % 3]});
    }
  }
  return voices;
}

std::vector<Voice> plain_voices() {
  std::vector<Voice> voices;
  for (const char* base : {"awb", "kal16", "rms", "slt"}) voices.push_back({base, 1, plain_pitch(base), 1});
  return voices;
}

std::string plain_word(const char* token) {
  std::string word;
  for (; *token != 0; ++token) {
    const auto c = static_cast<unsigned char>(*token);
    if (std::isalnum(c) || c == '\'') word += static_cast<char>(std::tolower(c));
  }
  return word;
}

Spoken trimmed(std::span<const float> all, std::vector<mttt::Word> words) {
  const double length = static_cast<double>(all.size()) / sample_rate;
  const double from = words.empty() ? 0 : std::max(0.0, words.front().start - 0.03);
  const double to = words.empty() ? length : std::min(length, words.back().end + 0.05);
  const auto first = static_cast<std::size_t>(from * sample_rate);
  const auto sound = all.subspan(first, static_cast<std::size_t>(to * sample_rate) - first);
  double power = 0, peak = 1e-3;
  for (const float sample : sound) {
    const double x = static_cast<double>(sample);
    power += x * x, peak = std::max(peak, std::abs(x));
  }
  const double rms = std::max(1e-4, std::sqrt(power / std::max(1.0, static_cast<double>(sound.size()))));
  const double gain = 32768 * std::min(voice_loudness / rms, voice_peak / peak);
  constexpr std::size_t fade = sample_rate / 200;  // 5 ms
  Spoken spoken{std::vector<std::int16_t>(sound.size()), std::move(words)};
  for (std::size_t t = 0; t < sound.size(); ++t) {
    const std::size_t edge = std::min({t, sound.size() - 1 - t, fade});
    spoken.samples[t] = static_cast<std::int16_t>(std::lrint(
        static_cast<double>(sound[t]) * gain * static_cast<double>(edge) / static_cast<double>(fade)));
  }
  for (auto& word : spoken.words)
    word.start = std::max(0.0, word.start - from), word.end = std::min(word.end - from, spoken.seconds());
  return spoken;
}

Spoken speak(const Voice& voice, const std::string& text) {
  cst_voice* base = base_voice(voice.base);
  noise = 1;
  cst_utterance* utterance = new_utterance();
  utt_set_input_text(utterance, text.c_str());
  utt_init(utterance, base);
  feat_set_float(utterance->features, "duration_stretch", static_cast<float>(voice.pace * voice.tract));
  feat_set_float(utterance->features, "int_f0_target_mean", static_cast<float>(voice.pitch / voice.tract));
  if (utt_synth(utterance) == nullptr || utt_wave(utterance) == nullptr)
    mttt::fail("speech", "nothing for '" + text + "'", "a sentence");
  const cst_wave* wave = utt_wave(utterance);
  auto words = words_of(utterance);
  for (auto& word : words) word.start /= voice.tract, word.end /= voice.tract;
  auto sound = resample_up(std::span(wave->samples, static_cast<std::size_t>(wave->num_samples)),
                           sample_rate / (wave->sample_rate * voice.tract));
  delete_utterance(utterance);
  for (float& x : sound) x /= 32768;
  return trimmed(sound, std::move(words));
}

std::shared_ptr<const Spoken> Studio::say(const Voice& voice, const std::string& text) {
  const std::string key = voice.name() + ' ' + text;
  Shelf& shelf = shelves_[std::hash<std::string>()(key) % shelves_.size()];
  std::shared_ptr<const Spoken> spoken;
  {
    const std::lock_guard guard(shelf.mutex);
    if (const auto found = shelf.sentences.find(key); found != shelf.sentences.end()) spoken = found->second;
  }
  if (!spoken) {
    Spoken anew = speak(voice, text);
    if (coder_ != nullptr) anew.codes = coder_->encode(anew.samples);
    spoken = std::make_shared<const Spoken>(std::move(anew));
    made_ += spoken->samples.size();
    const std::size_t bytes = 2 * spoken->samples.size() + 64 * spoken->words.size() + 256;
    if (bytes_ + bytes < most_bytes_) {
      bytes_ += bytes;
      const std::lock_guard guard(shelf.mutex);
      spoken = shelf.sentences.emplace(key, spoken).first->second;
    }
  }
  said_ += spoken->samples.size();
  return spoken;
}

std::size_t Studio::sentences() const {
  std::size_t count = 0;
  for (auto& shelf : shelves_) count += shelf.sentences.size();
  return count;
}
