// The text that a model says, word by word as its tokens come. Without a tokenizer, or in a program that was
// built without sentencepiece, the tokens themselves, as numbers.
#pragma once

#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "mttt/io/file.hpp"
#ifdef MTTT_HAS_TEXT
#include "mttt/io/text.hpp"
#endif

class Words {
 public:
  /// `tokens`: how many the model has. An empty path is no tokenizer.
  Words(const std::filesystem::path& tokenizer, [[maybe_unused]] int tokens, std::FILE* out) : out_(out) {
    if (tokenizer.empty()) {
      std::fprintf(stderr,
                   "no tokenizer (tokenizer_spm_32k_3.model, or --tokenizer): text comes as numbers\n");
      return;
    }
#ifdef MTTT_HAS_TEXT
    tokenizer_ = mttt::TextTokenizer::load(tokenizer);
    if (tokenizer_->vocab_size() != tokens) {
      mttt::fail(tokenizer.string(), std::to_string(tokenizer_->vocab_size()) + " pieces",
                 std::to_string(tokens), "use the tokenizer of the model");
    }
#else
    std::fprintf(stderr, "%s: this program was built without sentencepiece: text comes as numbers\n",
                 tokenizer.c_str());
#endif
  }

  void hear(int token) {
    all_.push_back(token);
#ifdef MTTT_HAS_TEXT
    if (tokenizer_) {
      // A word is decoded again with each of its tokens: only all of them say what bytes and spaces mean.
      if (tokenizer_->id_to_piece(token).starts_with("\u2581")) word_ = all_.size() - 1, told_ = 0;
      std::string word = tokenizer_->decode(std::span(all_).subspan(word_));
      if (word_ > 0) word = " " + word;
      if (word.ends_with("\uFFFD")) return;  // a letter of several bytes, whose last ones are to come
      if (word.size() > told_) tell(word.substr(told_));
      told_ = word.size();
      return;
    }
#endif
    tell((all_.size() > 1 ? " " : "") + std::to_string(token));
  }

  std::string all() const {
#ifdef MTTT_HAS_TEXT
    if (tokenizer_) return tokenizer_->decode(all_);
#endif
    std::string text;
    for (const int token : all_) text += (text.empty() ? "" : " ") + std::to_string(token);
    return text;
  }

 private:
  void tell(const std::string& text) {
    std::fputs(text.c_str(), out_);
    std::fflush(out_);
  }

  std::FILE* out_;
  std::vector<int> all_;
#ifdef MTTT_HAS_TEXT
  std::optional<mttt::TextTokenizer> tokenizer_;
  std::size_t word_ = 0, told_ = 0;  // the token that began the word; characters of it that were told
#endif
};
