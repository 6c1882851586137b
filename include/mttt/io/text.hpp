// Text to tokens and back with a sentencepiece model, the text tokenizer of Moshi.
//
// Shapes:  a list of ids in [0, vocab_size()).   Units: tokens.
// Errors:  missing, empty or garbage models; ids outside the vocabulary.
// Not supported: training; sampled segmentations. Bytes that are not UTF-8 are read as U+FFFD. An optional
// part of the
//          library: link with -lsentencepiece.
// Source:  google/sentencepiece, SentencePieceProcessor.
#pragma once

#include <sentencepiece_processor.h>

#include <memory>
#include <vector>

#include "mttt/io/file.hpp"

namespace mttt {

class TextTokenizer {
 public:
  static TextTokenizer load(const std::filesystem::path& path) {
    const MappedFile file(path);
    TextTokenizer out(path.string());
    constexpr std::string_view advice =
        "fetch the model again, and check that it is the tokenizer and not the weights";
    if (file.bytes().empty()) fail(path.string(), "an empty file", "a sentencepiece model", advice);
    const auto status = out.processor_->LoadFromSerializedProto(file.text());
    if (!status.ok()) {
      fail(path.string(), detail::quote(status.error_message()), "a sentencepiece model", advice);
    }
    if (out.vocab_size() < 1) fail(path.string(), "no pieces", "a sentencepiece model", advice);
    return out;
  }

  std::vector<int> encode(std::string_view text) const {
    std::vector<int> ids;
    check(processor_->Encode(text, &ids), "text");
    return ids;
  }

  std::string decode(std::span<const int> ids) const {
    for (const int id : ids) check_id(id);
    std::string text;
    check(processor_->Decode(std::vector<int>(ids.begin(), ids.end()), &text), "tokens");
    return text;
  }

  const std::string& id_to_piece(int id) const {
    check_id(id);
    return processor_->IdToPiece(id);
  }

  int vocab_size() const { return processor_->GetPieceSize(); }
  /// -1 where the model has no such token.
  int bos_id() const { return processor_->bos_id(); }
  int eos_id() const { return processor_->eos_id(); }
  int pad_id() const { return processor_->pad_id(); }
  int unk_id() const { return processor_->unk_id(); }

 private:
  explicit TextTokenizer(std::string path)
      : path_(std::move(path)), processor_(std::make_unique<sentencepiece::SentencePieceProcessor>()) {}

  void check_id(int id) const {
    if (id >= 0 && id < vocab_size()) return;
    fail(
        path_, detail::cat("token ", id), detail::cat("an id from 0 to ", vocab_size() - 1),
        "remove the model's special tokens before decoding, or load the tokenizer that belongs to the model");
  }
  void check(const sentencepiece::util::Status& status, std::string_view what) const {
    if (!status.ok())
      fail(path_, detail::quote(status.error_message()), detail::cat(what, " it can convert"),
           "check the model");
  }

  std::string path_;
  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
};

}  // namespace mttt
