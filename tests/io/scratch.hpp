// A folder for one test, removed at its end, and small helpers to see what an error says.
#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "catch.hpp"
#include "mttt/core/error.hpp"

class Scratch {
 public:
  Scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "mttt-test-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    folder = name;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  }

  std::filesystem::path operator/(const std::string& name) const { return folder / name; }
  std::filesystem::path put(const std::string& name, const std::string& content) const {
    std::ofstream(folder / name, std::ios::binary) << content;
    return folder / name;
  }
  std::ptrdiff_t files() const { return std::distance(std::filesystem::directory_iterator(folder), {}); }

  std::filesystem::path folder;
};

inline std::string content_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The message of the mttt::Error that `f` throws; empty when it throws none. Other exceptions fail the test.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const mttt::Error& error) {
    return error.what();
  }
  return {};
}

/// Checks that `f` is refused with a message that holds `words` and is complete.
template <class F>
void check_refused(F&& f, const std::string& words) {
  const std::string message = error_of(f);
  INFO("message: " << message);
  INFO("wanted:  " << words);
  CHECK(message.find(words) != std::string::npos);
  CHECK(message.find("; expected ") != std::string::npos);
}

/// Lets no file of this process grow beyond `bytes`: a full disk, made to order.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit old_{};
  void (*handler_)(int);
};
