// Files: read by pieces or whole into memory, written whole or not at all.
//
// Nothing is mapped: a map of a file that another process shortens ends the reader with SIGBUS; a read that
// comes back short is an Error.
//
// write_file_atomically fills a temporary file in the target's folder, forces it to disk, renames it over
// the target and forces the folder to disk. Whatever fails on the way, the temporary is removed and an older
// file stays as it was. Only a killed process leaves a temporary behind, `.NAME.PID-N.mttt-tmp`; the next
// process that writes into that folder removes it. A lock tells which temporaries are still being written.
//
// Shapes:  none.   Units: bytes.
// Errors:  missing or unreadable files, folders and devices in place of a file, a file that became shorter
//          while it was read, a full disk: Error. What the callback of write_file_atomically throws passes
//          through, after the temporary is removed.
// Not supported: systems without POSIX; pipes (they are refused at once, not waited for); leftovers on disks
//          that know no locks, which stay.
// Source:  POSIX.1-2017 rename, fsync, pread; flock(2).
#pragma once

#include <fcntl.h>
#include <sys/file.h>
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
#include <memory>
#include <mutex>
#include <new>
#include <set>
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

/// Whether a path that a file names leads to one below: printable, of ordinary length, no way up or out.
inline bool leads_below(std::string_view path) {
  if (path.size() > 1024) return false;
  for (bool last = false; !last;) {
    const std::size_t end = path.find('/');
    const std::string_view part = path.substr(0, end);
    if (part.empty() || part.size() > 255 || part == "." || part == "..") return false;
    for (const char c : part)
      if (static_cast<unsigned char>(c) < ' ' || c == 127) return false;
    last = end == path.npos;
    if (!last) path.remove_prefix(end + 1);
  }
  return true;
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
    fail(
        path.string(), S_ISDIR(status.st_mode) ? "a folder" : "a pipe or a device", "a regular file",
        S_ISDIR(status.st_mode) ? "name the file itself" : "write what it delivers to a file, and name that");
  }
  bytes = static_cast<std::uint64_t>(status.st_size);
  return file;
}

}  // namespace detail

/// A regular file, open for reading at any place, from several threads too.
class FileReader {
 public:
  explicit FileReader(const std::filesystem::path& path)
      : path_(path), file_(detail::open_for_reading(path, bytes_)) {}

  /// At its opening.
  std::uint64_t bytes() const { return bytes_; }

  /// Fills `out` with what stands from byte `at` on.
  void read(std::uint64_t at, std::span<std::byte> out) const {
    while (!out.empty()) {
      const auto got = ::pread(file_.get(), out.data(), std::min(out.size(), std::size_t{1} << 30),
                               static_cast<off_t>(at));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) detail::fail_system(path_, detail::cat("reading after ", at, " bytes"), errno);
      if (got == 0) {
        fail(path_.string(), detail::cat("the end of the file after ", at, " bytes"),
             detail::cat(bytes_, " bytes, as at its opening"),
             "another program shortened it while it was read: replace files by renaming, never in place");
      }
      at += static_cast<std::uint64_t>(got);
      out = out.subspan(static_cast<std::size_t>(got));
    }
  }

 private:
  std::filesystem::path path_;
  std::uint64_t bytes_ = 0;  // before file_, whose opening sets it
  detail::Descriptor file_;
};

/// A whole file, copied into memory.
class WholeFile {
 public:
  explicit WholeFile(const std::filesystem::path& path) {
    const FileReader reader(path);
    const auto size = static_cast<std::size_t>(reader.bytes());
    data_.reset(new (std::nothrow) std::byte[std::max<std::size_t>(size, 1)]);
    if (data_ == nullptr) {
      fail(path.string(), detail::cat("no memory for its ", size, " bytes"), "a file that fits into memory",
           "end other programs, or name a smaller file");
    }
    reader.read(0, {data_.get(), size});
    size_ = size;
  }
  WholeFile(WholeFile&& other) noexcept
      : data_(std::move(other.data_)), size_(std::exchange(other.size_, 0)) {}
  WholeFile& operator=(WholeFile&& other) noexcept {
    std::swap(data_, other.data_), std::swap(size_, other.size_);
    return *this;
  }

  std::span<const std::byte> bytes() const { return {data_.get(), size_}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_.get()), size_}; }

 private:
  std::unique_ptr<std::byte[]> data_;
  std::size_t size_ = 0;
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

inline constexpr std::string_view temporary_ending = ".mttt-tmp";

/// Removes what killed processes left in a folder: temporaries that nobody holds a lock on.
inline void remove_leftovers(const std::filesystem::path& folder) {
  std::error_code ignored;  // whatever cannot be listed, opened or removed stays
  for (std::filesystem::directory_iterator it(folder, ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with('.') || !name.ends_with(temporary_ending)) continue;
    // For writing, since some network disks lock nothing else.
    const Descriptor file(::open(it->path().c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    struct stat status {};
    if (file.get() >= 0 && ::fstat(file.get(), &status) == 0 && S_ISREG(status.st_mode) &&
        ::flock(file.get(), LOCK_EX | LOCK_NB) == 0)
      ::unlink(it->path().c_str());
  }
}

/// The same, once a process and folder: later leftovers wait for the next process.
inline void remove_leftovers_once(const std::filesystem::path& folder) {
  static std::mutex mutex;
  static std::set<std::filesystem::path> done;
  std::error_code ignored;
  const auto whole = std::filesystem::weakly_canonical(folder, ignored);
  const std::lock_guard guard(mutex);
  if (done.insert(whole).second) remove_leftovers(folder);
}

/// A new file next to `target`, removed again unless it is renamed over it by commit().
class TemporaryFile {
 public:
  explicit TemporaryFile(std::filesystem::path target) : target_(std::move(target)) {
    const auto folder = target_.has_parent_path() ? target_.parent_path() : std::filesystem::path(".");
    folder_ = Descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder_.get() < 0) fail_system(target_, cat("opening its folder ", folder), errno);
    remove_leftovers_once(folder);
    do create(folder);
    while (!lock());
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
    const Descriptor locked(::fcntl(file_.get(), F_DUPFD_CLOEXEC, 0));  // keeps the lock until it is renamed
    if (const int error = file_.close(); error != 0) fail_system(target_, "closing it", error);
    if (::rename(path_.c_str(), target_.c_str()) != 0) fail_system(target_, "renaming it into place", errno);
    committed_ = true;
    // Some network disks cannot sync a folder and say EINVAL; there is nothing more to do on those.
    if (::fsync(folder_.get()) != 0 && errno != EINVAL)
      fail_system(target_, "forcing its folder to disk", errno);
  }

 private:
  void create(const std::filesystem::path& folder) {
    static std::atomic<unsigned> counter{0};
    do {  // a name left by a killed process of the same number is stepped over
      path_ =
          folder / cat(".", target_.filename().string(), ".", ::getpid(), "-", counter++, temporary_ending);
      file_ = Descriptor(::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    } while (file_.get() < 0 && errno == EEXIST);
    if (file_.get() < 0) fail_system(target_, "creating a temporary file beside it", errno);
  }

  /// False: another process took the new file for a leftover, before it was locked.
  bool lock() {
    if (::flock(file_.get(), LOCK_EX | LOCK_NB) != 0) return errno != EWOULDBLOCK;
    struct stat status {};
    return ::fstat(file_.get(), &status) != 0 || status.st_nlink > 0;
  }

  std::filesystem::path target_, path_;
  Descriptor folder_, file_;
  bool committed_ = false;
};

}  // namespace detail

/// Makes a folder and those above it, on disk when this returns.
inline void make_folders(const std::filesystem::path& folder) {
  std::error_code error;
  if (folder.empty() || std::filesystem::is_directory(folder, error)) return;
  const auto parent = folder.has_filename() ? folder.parent_path() : folder.parent_path().parent_path();
  make_folders(parent);
  std::filesystem::create_directory(folder, error);
  if (error) {
    fail(folder.string(), detail::quote(error.message()), "a folder that can be made",
         "choose another, or check the permissions");
  }
  const detail::Descriptor above(
      ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (above.get() >= 0 && ::fsync(above.get()) != 0 && errno != EINVAL)
    detail::fail_system(folder, "forcing the folder above it to disk", errno);
}

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
