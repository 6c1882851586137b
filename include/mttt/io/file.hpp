// Files: read whole by memory map, written whole or not at all.
//
// write_file_atomically fills a temporary file in the target's folder, forces it to disk, renames it over
// the target and forces the folder to disk. Whatever fails on the way, the temporary is removed and an older
// file stays as it was. Only a killed process leaves a temporary behind, `.NAME.PID-N.tmp`.
//
// Shapes:  none.   Units: bytes.
// Errors:  missing or unreadable files, folders and devices in place of a file, a full disk: Error. What the
//          callback of write_file_atomically throws passes through, after the temporary is removed.
// Not supported: systems without POSIX; pipes; a file that another process shortens while it is mapped, which
//          ends this process with SIGBUS.
// Source:  POSIX.1-2017 rename, fsync, mmap.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "mttt/core/error.hpp"

namespace mttt {
namespace detail {

/// Everything printed one after the other.
template <class... Args>
std::string cat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return std::move(out).str();
}

/// Text from a file, made fit for a message: quoted, printable, not longer than a line.
inline std::string quote(std::string_view text) {
  constexpr std::size_t limit = 80;
  std::string out = "'";
  for (const char c : text.substr(0, limit)) out += (c >= ' ' && c <= '~') ? c : '?';
  return out + (text.size() > limit ? "...'" : "'");
}

[[noreturn]] inline void fail_system(const std::filesystem::path& path, std::string_view doing, int error) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  const bool denied = error == EACCES || error == EPERM || error == EROFS;
  fail(path.string(), cat("'", std::generic_category().message(error), "' while ", doing),
       "a file that the system lets us use",
       full ? "make space on that disk or choose another; nothing was replaced"
            : (denied ? "check the permissions of the file and of its folder"
                      : "check the path and the disk"));
}

/// Owns a file descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  /// Closes now and answers errno, because some disks report a failed write only here.
  int close() { return ::close(std::exchange(fd_, -1)) == 0 ? 0 : errno; }

 private:
  int fd_;
};

/// Opens an existing regular file for reading; `bytes` receives its size.
inline Descriptor open_for_reading(const std::filesystem::path& path, std::uint64_t& bytes) {
  // Without O_NONBLOCK the open of a pipe that nobody writes would wait for ever.
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0 && errno == ENOENT) {
    fail(path.string(), "no such file", "an existing file", "check the spelling and the current folder");
  }
  if (file.get() < 0) fail_system(path, "opening it", errno);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail_system(path, "reading its size", errno);
  if (!S_ISREG(status.st_mode)) {
    fail(path.string(), S_ISDIR(status.st_mode) ? "a folder" : "a pipe or a device", "a regular file",
         "name the file itself");
  }
  bytes = static_cast<std::uint64_t>(status.st_size);
  return file;
}

}  // namespace detail

/// A whole file, read only, mapped into memory for as long as this object lives.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path) {
    std::uint64_t bytes = 0;
    const detail::Descriptor file = detail::open_for_reading(path, bytes);
    if (bytes == 0) return;  // an empty map is not allowed
    void* data = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (data == MAP_FAILED) detail::fail_system(path, "mapping it into memory", errno);
    bytes_ = {static_cast<const std::byte*>(data), bytes};
  }
  MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~MappedFile() {
    if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }

  std::span<const std::byte> bytes() const { return bytes_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }

 private:
  std::span<const std::byte> bytes_;
};

/// Where the callback of write_file_atomically writes to.
class FileSink {
 public:
  FileSink(int descriptor, std::filesystem::path path) : descriptor_(descriptor), path_(std::move(path)) {}

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const auto done =
          ::write(descriptor_, bytes.data(), std::min<std::size_t>(bytes.size(), std::size_t{1} << 30));
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) detail::fail_system(path_, detail::cat("writing after ", written_, " bytes"), errno);
      bytes = bytes.subspan(static_cast<std::size_t>(done));
      written_ += static_cast<std::uint64_t>(done);
    }
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }

  std::uint64_t written() const { return written_; }
  int descriptor() const { return descriptor_; }

 private:
  int descriptor_;
  std::filesystem::path path_;
  std::uint64_t written_ = 0;
};

namespace detail {

/// A new file next to `target`, removed again unless it is renamed over it by commit().
class TemporaryFile {
 public:
  explicit TemporaryFile(std::filesystem::path target) : target_(std::move(target)) {
    static std::atomic<unsigned> counter{0};
    const auto folder = target_.has_parent_path() ? target_.parent_path() : std::filesystem::path(".");
    folder_ = Descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder_.get() < 0) fail_system(target_, cat("opening its folder ", folder), errno);
    do {  // a name left by a killed process of the same number is stepped over
      path_ = folder / cat(".", target_.filename().string(), ".", ::getpid(), "-", counter++, ".tmp");
      file_ = Descriptor(::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    } while (file_.get() < 0 && errno == EEXIST);
    if (file_.get() < 0) fail_system(target_, "creating a temporary file beside it", errno);
    struct stat old {};
    if (::stat(target_.c_str(), &old) == 0)
      (void)!::fchmod(file_.get(), old.st_mode & 07777);  // as good as it gets
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (!committed_) ::unlink(path_.c_str());
  }

  int descriptor() const { return file_.get(); }

  void commit() {
    if (::fsync(file_.get()) != 0) fail_system(target_, "forcing it to disk", errno);
    if (const int error = file_.close(); error != 0) fail_system(target_, "closing it", error);
    if (::rename(path_.c_str(), target_.c_str()) != 0) fail_system(target_, "renaming it into place", errno);
    committed_ = true;
    // Some network disks cannot sync a folder and say EINVAL; there is nothing more to do on those.
    if (::fsync(folder_.get()) != 0 && errno != EINVAL)
      fail_system(target_, "forcing its folder to disk", errno);
  }

 private:
  std::filesystem::path target_, path_;
  Descriptor folder_, file_;
  bool committed_ = false;
};

}  // namespace detail

/// Calls `fill(sink)` and puts what it wrote in the place of `path`; follows a symbolic link.
template <std::invocable<FileSink&> Fill>
void write_file_atomically(const std::filesystem::path& path, Fill&& fill) {
  std::error_code ignored;
  const bool link = std::filesystem::is_symlink(path, ignored);
  const auto target = link ? std::filesystem::weakly_canonical(path) : path;
  const auto status = std::filesystem::status(target, ignored);
  if (!target.has_filename() || (exists(status) && !is_regular_file(status))) {
    fail(path.string(), "a folder or a device", "a regular file or a new name", "name a file to write");
  }
  detail::TemporaryFile temporary(target);
  FileSink sink(temporary.descriptor(), target);
  std::forward<Fill>(fill)(sink);
  temporary.commit();
}

inline void write_file_atomically(const std::filesystem::path& path, std::string_view content) {
  write_file_atomically(path, [&](FileSink& sink) { sink.write(content); });
}

}  // namespace mttt
