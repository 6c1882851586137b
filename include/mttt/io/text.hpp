// Text to tokens and back with a sentencepiece model, the text tokenizer of Moshi.
//
// Shapes:  a list of ids in [0, vocab_size()).   Units: tokens.
// Errors:  missing, empty or garbage models, and those that would lead sentencepiece astray; ids outside the
//          vocabulary.
// Not supported: training; sampled segmentations. Bytes that are not UTF-8 are read as U+FFFD. An optional
//          part of the library: link with -lsentencepiece.
// Source:  google/sentencepiece, SentencePieceProcessor.
#pragma once

#include <sentencepiece_processor.h>

#include <exception>
#include <memory>
#include <vector>

#include "mttt/io/file.hpp"
#include "mttt/io/text_model.hpp"

namespace mttt {

class TextTokenizer {
 public:
  static TextTokenizer load(const std::filesystem::path& path) {
    const WholeFile file(path);
    TextTokenizer out(path.string());
    if (file.bytes().empty()) out.garbage("an empty file");
    if (const auto problem = detail::model_problem(file.text())) out.garbage(*problem);
    out.run([&] { return out.processor_->LoadFromSerializedProto(file.text()); });
    if (out.vocab_size() < 1) out.garbage("no pieces");
    return out;
  }

  std::vector<int> encode(std::string_view text) const {
    std::vector<int> ids;
    run([&] { return processor_->Encode(text, &ids); });
    return ids;
  }

  std::string decode(std::span<const int> ids) const {
    for (const int id : ids) check_id(id);
    std::string text;
    run([&] { return processor_->Decode(std::vector<int>(ids.begin(), ids.end()), &text); });
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
  [[noreturn]] void garbage(std::string_view found) const {
    fail(path_, found, "a sentencepiece model",
         "fetch the model again, and check that it is the tokenizer and not the weights");
  }
  /// Calls sentencepiece, which reports a damaged model by status or by exceptions of its own.
  template <class F>
  void run(F&& call) const {
    sentencepiece::util::Status status;
    try {
      status = call();
    } catch (const std::exception& error) {
      garbage(detail::quote(error.what()));
    }
    if (!status.ok()) garbage(detail::quote(status.error_message()));
  }

  std::string path_;
  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
};

}  // namespace mttt
