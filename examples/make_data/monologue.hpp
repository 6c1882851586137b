// Texts, and a voice that reads a piece of one.
#pragma once

#include <cctype>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "conversation.hpp"
#include "grammar.hpp"
#include "recording.hpp"

/// Sentences of plain text files. Of a file of several passages, one in ten is kept for tests.
class Library {
 public:
  explicit Library(const std::vector<std::filesystem::path>& files) {
    for (const auto& path : files) {
      const mttt::WholeFile file(path);
      const auto sentences = sentences_of(file.text());
      for (std::size_t at = 0; at < sentences.size(); at += passage) {
        const auto end = std::min(sentences.size(), at + passage);
        auto& shelf = held_out(sentences[at]) ? test_ : train_;
        shelf.emplace_back(sentences.begin() + static_cast<std::ptrdiff_t>(at),
                           sentences.begin() + static_cast<std::ptrdiff_t>(end));
      }
    }
    if (train_.empty() || test_.empty())
      mttt::fail("texts", "too few sentences",
                 "texts of ten passages of " + std::to_string(passage) + " sentences");
  }

  const std::vector<std::vector<std::string>>& passages(Split split) const {
    return split == Split::test ? test_ : train_;
  }

  /// Ends at . ! ? ; and :, in lower case; what has over 40 words is divided at commas.
  static std::vector<std::string> sentences_of(std::string_view text) {
    std::vector<std::string> sentences;
    std::string sentence;
    int words = 0;
    const auto finish = [&](char mark) {
      while (!sentence.empty() && sentence.back() == ' ') sentence.pop_back();
      if (words >= 2) sentences.push_back(sentence + mark);
      sentence.clear(), words = 0;
    };
    for (const char raw : text) {
      const char c = static_cast<char>(std::tolower(static_cast<unsigned char>(raw)));
      if (c == '.' || c == '!' || c == '?' || c == ';' || c == ':' || (c == ',' && words > 20)) {
        finish(c == '?' ? '?' : '.');
      } else if (std::isalpha(static_cast<unsigned char>(c)) || c == ',' ||
                 (c == '\'' && !sentence.empty())) {
        words += sentence.empty() || sentence.back() == ' ';
        sentence += c;
      } else if (!sentence.empty() && sentence.back() != ' ') {
        sentence += ' ';
      }
      if (words > 40) finish('.');
    }
    finish('.');
    return sentences;
  }

 private:
  static constexpr std::size_t passage = 50;  // sentences
  std::vector<std::vector<std::string>> train_, test_;
};

/// A reader: says sentences, all at once.
using Reader = std::function<std::vector<Spoken>(const std::vector<std::string>&)>;

/// The voice of the program festival, by its name there: kal_diphone. Needs libsndfile and soxr, which read what it writes.
Reader festival_reader(const std::string& voice);

/// About `length` seconds from the middle of a passage, mono, the reader being the model.
inline Recording read_aloud(const Library& library, Split split, const Reader& reader, double length,
                            std::string about, mttt::Rng& rng) {
  Recording recording{std::vector<std::int16_t>(sample_rate / 4), 1, {}, std::move(about)};
  const auto& passages = library.passages(split);
  auto passage = rng.below(passages.size());
  auto sentence = rng.below(passages[passage].size());
  std::vector<std::string> text;
  for (double seconds = 0; seconds < length;) {
    text.push_back(passages[passage][sentence]);
    seconds += 0.6 + 0.066 * static_cast<double>(text.back().size());
    if (++sentence == passages[passage].size()) passage = (passage + 1) % passages.size(), sentence = 0;
  }
  for (const Spoken& spoken : reader(text)) {
    const double at = recording.seconds();
    for (const auto& word : spoken.words)
      recording.words.push_back({word.text, at + word.start, at + word.end, std::string(mttt::main_speaker)});
    recording.samples.insert(recording.samples.end(), spoken.samples.begin(), spoken.samples.end());
    recording.samples.resize(recording.samples.size() +
                             static_cast<std::size_t>((0.25 + 0.4 * rng.uniform()) * sample_rate));
  }
  return recording;
}
