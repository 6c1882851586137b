// A file of JSON lines (metrics, logs) that survives a crash: every append writes one whole line.
//
// A process killed in the middle of a line leaves a half line; opening the file again cuts it off, and says
// how much. Lines should be objects or arrays, since half a number is a number.
//
// Shapes:  none.   Units: bytes.
// Errors:  Error when the file cannot be opened or written; a line written in part is taken back first.
// Not supported: several writers of one file at a time; forcing every line to disk.
// Source:  jsonlines.org.
#pragma once

#include <nlohmann/json.hpp>

#include "mttt/io/file.hpp"

namespace mttt {

class JsonLines {
 public:
  explicit JsonLines(std::filesystem::path path) : path_(std::move(path)) {
    file_ = detail::Descriptor(::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
    if (file_.get() < 0) detail::fail_system(path_, "opening it", errno);
    const WholeFile file(path_);
    const std::string_view text = file.text();
    const std::size_t end = text.rfind('\n') + 1;  // npos + 1 == 0
    size_ = text.size();
    if (end == size_) return;
    if (nlohmann::json::accept(text.substr(end))) {
      write("\n");  // whole, only its line end is missing
    } else {
      repaired_ = size_ - end;
      cut(end);
    }
  }

  void append(const nlohmann::json& value) {
    write(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n');
  }

  /// Bytes of a half line that opening the file removed.
  std::uint64_t repaired() const { return repaired_; }

 private:
  void write(std::string_view text) {
    try {
      FileSink sink(file_.get(), path_);
      sink.write(text);
    } catch (...) {
      cut(size_);
      throw;
    }
    size_ += text.size();
  }
  void cut(std::uint64_t size) {
    if (::ftruncate(file_.get(), static_cast<off_t>(size)) != 0)
      detail::fail_system(path_, "removing a half line", errno);
    size_ = size;
  }

  std::filesystem::path path_;
  detail::Descriptor file_;
  std::uint64_t size_ = 0, repaired_ = 0;
};

}  // namespace mttt
