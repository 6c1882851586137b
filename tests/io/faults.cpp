// Faults, each brought about for real: full disks, folders without permission, SIGKILL in the middle of a
// checkpoint, files shortened while they are read, pipes that stall, NaN in weights, no memory, power loss.
//
// No fault needs a privilege. A full disk is a limit on the size of files (and a tiny tmpfs where one may be
// mounted), root gives up its capabilities where permissions are to count, and the order of what reaches the
// disk is seen by the functions below, which stand before those of the C library in this program.
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <chrono>
#include <functional>
#include <random>

#include "mttt/io/codes.hpp"
#include "mttt/io/metrics.hpp"
#include "mttt/io/run_folder.hpp"
#include "scratch.hpp"

namespace {

/// What the library asks of the system while `record` is set, and what to answer instead.
struct Watch {
  bool record = false;
  std::vector<std::string> calls;
  std::string broken;                    // the call that fails,
  int error = EIO;                       // and with what
  std::size_t longest_write = SIZE_MAX;  // bytes that one write takes
  std::function<void()> before_read;
};
Watch& watch() {
  static Watch one;
  return one;
}

std::string file_name_of(int descriptor) {
  std::error_code ignored;
  return std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(descriptor), ignored)
      .filename()
      .string();
}

/// Notes the call; whether it is to fail.
bool noted(const std::string& call) {
  if (watch().calls.empty() || watch().calls.back() != call) watch().calls.push_back(call);
  if (call != watch().broken) return false;
  errno = watch().error;
  return true;
}

}  // namespace

extern "C" {
int fsync(int descriptor) {
  if (watch().record && noted("fsync " + file_name_of(descriptor))) return -1;
  return static_cast<int>(::syscall(SYS_fsync, descriptor));
}
int rename(const char* from, const char* to) noexcept {
  const auto name = [](const char* path) { return std::filesystem::path(path).filename().string(); };
  if (watch().record && noted("rename " + name(from) + " " + name(to))) return -1;
  return static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
ssize_t write(int descriptor, const void* data, std::size_t bytes) {
  if (watch().record && noted("write " + file_name_of(descriptor))) return -1;
  if (watch().record) bytes = std::min(bytes, watch().longest_write);
  return ::syscall(SYS_write, descriptor, data, bytes);
}
ssize_t pread(int descriptor, void* data, std::size_t bytes, off_t at) {
  if (watch().record && watch().before_read) watch().before_read();
  if (watch().record && noted("pread")) return -1;
  return ::syscall(SYS_pread64, descriptor, data, bytes, at);
}
}

namespace {

using namespace mttt;
using mttt::test::contains;
using B = Cpu<float>;  // of one thread everywhere: some cases fork

/// Records what happens during its life.
struct Watching {
  Watching() { watch() = {}, watch().record = true; }
  explicit Watching(const std::string& broken, int error = EIO) : Watching() {
    watch().broken = broken, watch().error = error;
  }
  Watching(const Watching&) = delete;
  Watching& operator=(const Watching&) = delete;
  ~Watching() { watch().record = false, watch().before_read = {}; }
};

/// Runs `f` in a child process: the text that it answers, or how it ended instead.
template <class F>
std::string in_child(F f) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::alarm(30);
    std::string text;
    try {
      text = f();
    } catch (const std::exception& error) {
      text = std::string("threw ") + error.what();
    }
    const bool sent = ::write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
    ::_exit(sent ? 0 : 1);
  }
  ::close(ends[1]);
  std::string answer(1 << 16, ' ');
  std::size_t size = 0;
  for (ssize_t got = 1; got > 0; size += static_cast<std::size_t>(std::max<ssize_t>(got, 0)))
    got = ::read(ends[0], answer.data() + size, answer.size() - size);
  ::close(ends[0]);
  answer.resize(size);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  if (WIFSIGNALED(status)) return answer + " died of signal " + std::to_string(WTERMSIG(status));
  return answer;
}

/// While it lives, root is subject to permissions as everybody is. Giving up needs no privilege.
class WithoutCapabilities {
 public:
  WithoutCapabilities() {
    REQUIRE(::syscall(SYS_capget, &header_, old_) == 0);
    __user_cap_data_struct none[2] = {{0, old_[0].permitted, old_[0].inheritable},
                                      {0, old_[1].permitted, old_[1].inheritable}};
    REQUIRE(::syscall(SYS_capset, &header_, none) == 0);
  }
  WithoutCapabilities(const WithoutCapabilities&) = delete;
  WithoutCapabilities& operator=(const WithoutCapabilities&) = delete;
  ~WithoutCapabilities() { ::syscall(SYS_capset, &header_, old_); }

 private:
  __user_cap_header_struct header_{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct old_[2];
};

struct Weights {
  Tensor<float, 128, 256> w;  // 128 KiB: a checkpoint has three of them
  static void visit(auto&& f, auto&&... p) { f("w", p.w...); }
};

/// A training whose every step is a function of its number.
struct Run {
  B be{1};
  Store<Weights, B> params{be};
  Trainer<Weights, B> trainer{be, params, {.max_steps = 1'000'000, .lr = 1e-3}};

  StepReport step() {
    return trainer.step([](std::int64_t index, Weights& grad) {
      for (Index i = 0; i < grad.w.size(); ++i)
        grad.w.data()[i] = 1e-3f * static_cast<float>((i + 7 * index) % 23 - 11);
      return MicroBatch{1.0 / static_cast<double>(index + 1), 1};
    });
  }
};

bool same(const Store<Weights, B>& a, const Store<Weights, B>& b) {
  return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())) == 0;
}

std::vector<std::string> names_in(const std::filesystem::path& folder, const std::string& ending) {
  std::vector<std::string> names;
  for (const auto& item : std::filesystem::directory_iterator(folder)) {
    const std::string name = item.path().filename().string();
    if (name.ends_with(ending)) names.push_back(name);
  }
  return names;
}

CodedRecording recording() {
  return {2, 500, std::vector<std::int32_t>(1000, 3), 12.5, 512, 256, "codec", "source"};
}

/// Every way to write a file that this library has, into `folder`.
std::vector<std::pair<std::string, std::function<void()>>> writers(Run& run,
                                                                   const std::filesystem::path& folder) {
  return {{"plain", [=] { write_file_atomically(folder / "plain", std::string(5000, 'x')); }},
          {"params", [=, &run] { save_params(folder / "params", run.be, run.params); }},
          {"state", [=, &run] { save_state(folder / "state", run.be, run.params); }},
          {"training", [=, &run] { save_training(folder / "training", run.be, run.trainer); }},
          {"codes", [=] { save_codes(folder / "codes", recording()); }}};
}

}  // namespace

TEST_CASE("power loss: content reaches the disk before the name, and the name before the caller goes on") {
  const Scratch scratch;
  const std::string folder = scratch.folder.filename().string();
  {
    const Watching watching;
    watch().longest_write = 1000;  // a disk may take less than it is given
    write_file_atomically(scratch / "a", std::string(5000, 'x'));
  }
  REQUIRE(watch().calls.size() == 4);
  const std::string temporary = watch().calls[0].substr(6);
  CHECK(watch().calls == std::vector<std::string>{"write " + temporary, "fsync " + temporary,
                                                  "rename " + temporary + " a", "fsync " + folder});
  CHECK(temporary.starts_with(".a."));
  CHECK(content_of(scratch / "a") == std::string(5000, 'x'));
  {
    const Watching watching;
    make_folders(scratch / "new/deep/");
  }
  CHECK(watch().calls == std::vector<std::string>{"fsync " + folder, "fsync new"});
  {
    const Watching watching;
    make_folders(scratch / "new/deep");
  }
  CHECK(watch().calls.empty());

  // An older checkpoint goes only when the new one is safe.
  Run run;
  RunFolder files(scratch / "run", 1);
  run.step(), files.save(run.be, run.trainer), run.step();
  {
    const Watching watching("fsync run");
    check_refused([&] { files.save(run.be, run.trainer); }, "forcing its folder to disk");
  }
  CHECK(std::filesystem::exists(scratch / "run/step_000001.safetensors"));
}

TEST_CASE("a disk that fails at any call leaves the old file and no temporary") {
  const Scratch scratch;
  const auto path = scratch.put("a", "old");
  std::string temporary;
  {
    const Watching watching;
    write_file_atomically(path, "old");
    temporary = watch().calls[0].substr(6);
  }
  // The next temporary has the next number: found by trying, since other cases count too.
  const auto dash = temporary.rfind('-', temporary.rfind(".mttt-tmp"));
  int number = std::atoi(temporary.c_str() + dash + 1);
  const auto next = [&] { return temporary.substr(0, dash + 1) + std::to_string(++number) + ".mttt-tmp"; };
  const std::pair<const char*, const char*> calls[] = {
      {"write ", "writing after 0 bytes"}, {"fsync ", "forcing it to disk"}, {"rename ", "into place"}};
  for (const auto& [call, words] : calls) {
    for (const int error : {EIO, ENOSPC, EDQUOT}) {
      const std::string name = next();
      const Watching watching(call + name + (call[0] == 'r' ? " a" : ""), error);
      const std::string message = error_of([&] { write_file_atomically(path, "new"); });
      watch().record = false;
      CHECK_THAT(message, contains(words) && contains(std::generic_category().message(error)));
      CHECK_THAT(message, contains(error == EIO ? "check the path and the disk" : "make space on that disk"));
      CHECK(content_of(path) == "old");
      CHECK(scratch.files() == 1);
    }
  }
}

TEST_CASE("a full disk: every writer says so, and every file is the old one or the new one") {
  const Scratch scratch;
  Run run;
  const auto all = writers(run, scratch.folder);
  for (const auto& [name, save] : all) save();
  const auto files = scratch.files();
  run.step();  // what is saved next differs
  for (const auto& [name, save] : all) {
    const std::string old = content_of(scratch / name);
    for (const std::size_t room : {std::size_t{0}, std::size_t{1}, std::size_t{100}, old.size() - 1}) {
      INFO(name << ", room for " << room << " of " << old.size() << " bytes");
      const FileSizeLimit limit(room);
      check_refused(save, "make space on that disk or choose another; nothing was replaced");
      check_refused(save, name + ": found 'File too large' while writing after ");
      CHECK((content_of(scratch / name) == old));
    }
  }
  CHECK(scratch.files() == files);

  // A disk of 64 KiB, in a child that has a view of the file system of its own.
  const std::string message = in_child([&]() -> std::string {
    if (::unshare(CLONE_NEWNS) != 0) {
      // Allowed to nobody but in a user namespace, where this user is the only one.
      const auto map = [](unsigned id) { return std::to_string(id) + " " + std::to_string(id) + " 1"; };
      const std::string user = map(::geteuid()), group = map(::getegid());
      if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return "not allowed";
      std::ofstream("/proc/self/setgroups") << "deny";
      std::ofstream("/proc/self/uid_map") << user;
      std::ofstream("/proc/self/gid_map") << group;
    }
    ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
    if (::mount("tmpfs", scratch.folder.c_str(), "tmpfs", 0, "size=64k") != 0) return "not allowed";
    if (!std::ofstream(scratch / "small").put('x')) return "not allowed";
    write_file_atomically(scratch / "small", "old");
    std::string said;
    for (const auto& [name, save] : writers(run, scratch.folder)) {
      if (name == "params" || name == "training" || name == "state") said += error_of(save) + "\n";
    }
    return said + content_of(scratch / "small") + " and " + std::to_string(scratch.files()) + " file";
  });
  if (message == "not allowed") {
    WARN("no tmpfs may be mounted here: only limits on the size of files stood for the full disk");
  } else {
    INFO(message);
    std::size_t lines = 0;
    for (auto at = message.find("No space left on device"); at != message.npos; ++lines)
      at = message.find("No space left on device", at + 1);
    CHECK(lines == 3);
    CHECK(message.ends_with("\nold and 1 file"));
  }
}

TEST_CASE("a full disk stops a training in good order: what was saved resumes") {
  const Scratch scratch;
  Run run, back;
  {
    RunFolder files(scratch / "run", 3);
    run.step();
    files.save(run.be, run.trainer);
    files.log(run.step());
    const FileSizeLimit limit(std::filesystem::file_size(scratch / "run/metrics.jsonl") + 10);
    check_refused([&] { files.save(run.be, run.trainer); }, "make space on that disk");
    check_refused([&] { files.log(run.step()); }, "make space on that disk");
  }
  RunFolder files(scratch / "run", 3);
  CHECK(files.resume(back.be, back.trainer));
  CHECK(back.trainer.adam.step == 1);
  CHECK(
      read_metrics(scratch / "run/metrics.jsonl", "run").steps.empty());  // step 2 came after the resumption
}

TEST_CASE("a folder without permission: every writer and reader says what to check") {
  const Scratch scratch;
  Run run;
  RunFolder files(scratch / "run");
  run.step();
  files.save(run.be, run.trainer);
  std::filesystem::create_directory(scratch / "locked");
  for (const auto& [name, save] : writers(run, scratch / "locked")) save();
  std::filesystem::permissions(scratch / "run", std::filesystem::perms(0500));
  std::filesystem::permissions(scratch / "locked", std::filesystem::perms(0500));
  std::filesystem::permissions(scratch / "locked/plain", std::filesystem::perms(0000));
  {
    const WithoutCapabilities user;
    for (const auto& [name, save] : writers(run, scratch / "locked")) {
      INFO(name);
      check_refused(save, "'Permission denied' while creating a temporary file beside it");
      check_refused(save, "check the permissions of the file and of its folder");
    }
    run.step();
    check_refused([&] { files.save(run.be, run.trainer); }, "check the permissions");
    check_refused([&] { RunFolder(scratch / "locked/run"); }, "a folder that can be made");
    check_refused([&] { JsonLines(scratch / "locked/new"); }, "check the permissions");
    check_refused([&] { WholeFile(scratch / "locked/plain"); }, "'Permission denied' while opening it");
    check_refused([&] { load_params(scratch / "locked/plain", run.be, run.params); },
                  "check the permissions");
  }
  CHECK(names_in(scratch / "locked", "").size() == 5);
  CHECK(names_in(scratch / "run", "").size() == 2);
  for (const char* name : {"run", "locked"})
    std::filesystem::permissions(scratch / name, std::filesystem::perms::owner_all);
}

TEST_CASE("SIGKILL in the middle of checkpoints: the newest is whole, resumes, and nothing piles up") {
  const Scratch scratch;
  const auto folder = scratch / "run";
  std::mt19937 random(20);
  std::int64_t step = 0;
  int interrupted = 0;
  for (int round = 0; round < 40; ++round) {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {  // a training that saves at every step and says when a save has returned
      try {
        ::alarm(60);
        Run run;
        RunFolder files(folder, 2);
        files.resume(run.be, run.trainer);
        for (;;) {
          if (::write(ends[1], &run.trainer.adam.step, 8) != 8) ::_exit(1);
          files.log(run.step());
          files.save(run.be, run.trainer);
        }
      } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
      }
      ::_exit(1);
    }
    ::close(ends[1]);
    std::int64_t safe = -1;
    REQUIRE(::read(ends[0], &safe, 8) == 8);
    CHECK(safe >= step);  // it went on from where the one before was killed
    ::usleep(static_cast<useconds_t>(random() % 30'000));
    REQUIRE(::kill(child, SIGKILL) == 0);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    REQUIRE(WTERMSIG(status) == SIGKILL);
    while (::read(ends[0], &safe, 8) == 8) {
    }
    ::close(ends[0]);

    const auto leftovers = names_in(folder, ".mttt-tmp");
    CHECK(leftovers.size() <= 1);  // its own: each child removes that of the one before
    interrupted += !leftovers.empty();
    CHECK(names_in(folder, ".safetensors").size() <= 3);  // the two that are kept, and the new one
    const RunFolder files(folder, 2);
    if (!files.newest()) continue;
    Run back;
    load_training(*files.newest(), back.be, back.trainer);
    step = back.trainer.adam.step;
    CHECK(step >= safe);
  }
  CHECK(interrupted >= 5);  // else the moments were badly chosen

  Run back, straight;
  RunFolder files(folder, 2);
  REQUIRE(files.resume(back.be, back.trainer));
  CHECK(back.trainer.adam.step >= 10);
  while (straight.trainer.adam.step < back.trainer.adam.step) straight.step();
  CHECK(same(back.params, straight.params));
  CHECK(same(back.trainer.adam.v, straight.trainer.adam.v));
  const Metrics metrics = read_metrics(folder / "metrics.jsonl", "run");
  for (std::size_t i = 0; i < metrics.steps.size(); ++i)
    CHECK(metrics.column("loss")->at(i) == 1.0 / metrics.steps[i]);
  files.save(back.be, back.trainer);
  CHECK(names_in(folder, "").size() == 3);  // metrics and two checkpoints
}

TEST_CASE("leftovers are removed, but not what is being written or belongs to others") {
  const Scratch scratch;
  scratch.put(".a.99999-0.mttt-tmp", "half");
  scratch.put(".b.tmp", "of another program");
  scratch.put("c.mttt-tmp", "a name that somebody chose");
  std::filesystem::create_directory(scratch / ".d.mttt-tmp");
  int ends[2], go[2];
  REQUIRE(::pipe(ends) == 0);
  REQUIRE(::pipe(go) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::alarm(30);
    char c = 'x';
    write_file_atomically(scratch / "slow", [&](FileSink& sink) {
      sink.write("first ");
      if (::write(ends[1], &c, 1) != 1 || ::read(go[0], &c, 1) != 1) ::_exit(1);
      sink.write("second");
    });
    ::_exit(0);
  }
  char c = 'x';
  REQUIRE(::read(ends[0], &c, 1) == 1);
  scratch.put(".e.99999-0.mttt-tmp", "half");
  write_file_atomically(scratch / "quick", "x");  // the first of this process in that folder
  CHECK(names_in(scratch.folder, "0.mttt-tmp").size() <= 1);
  CHECK_FALSE(std::filesystem::exists(scratch / ".a.99999-0.mttt-tmp"));
  CHECK_FALSE(std::filesystem::exists(scratch / ".e.99999-0.mttt-tmp"));
  CHECK(::write(go[1], &c, 1) == 1);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  for (const int end : {ends[0], ends[1], go[0], go[1]}) ::close(end);
  CHECK(content_of(scratch / "slow") == "first second");
  CHECK(scratch.files() == 5);  // slow, quick, .b.tmp, c.mttt-tmp, .d.mttt-tmp
}

TEST_CASE("a file that is shortened while it is read is an error, not the end of the process") {
  const Scratch scratch;
  Run run, back;
  run.step();
  save_training(scratch / "whole", run.be, run.trainer);
  save_params(scratch / "params", run.be, run.params);
  save_state(scratch / "state", run.be, run.params);
  const auto path = scratch / "f";
  const auto shortened = [&](const char* from, std::uintmax_t size, int at, const auto& load) {
    std::filesystem::copy_file(scratch / from, path, std::filesystem::copy_options::overwrite_existing);
    const Watching watching;
    int reads = 0;
    watch().before_read = [&, size, at] {
      if (++reads == at) std::filesystem::resize_file(path, size);
    };
    const std::string message = error_of(load);
    if (reads >= at) CHECK_THAT(message, contains("another program shortened it while it was read"));
    if (reads < at) CHECK(message.empty());
    return reads >= at;
  };
  // At every read, one after the other, until the file is read before it is shortened.
  for (const std::uintmax_t size : {std::uintmax_t{0}, std::uintmax_t{4}, std::uintmax_t{600}}) {
    int training = 1, params = 1, state = 1, plain = 1;
    while (shortened("whole", size, training, [&] { load_training(path, back.be, back.trainer); }))
      ++training;
    CHECK(training == 2 + 2 * 3 + 1);  // the header in two reads; three tensors, checked and copied
    while (shortened("params", size, params, [&] { load_params(path, back.be, back.params); })) ++params;
    CHECK(params == 2 + 2 + 1);
    back.be.fill(back.params->w.data(), back.params->w.size(), 5.0f);
    const Store<Weights, B> before(back.be, back.params);
    while (shortened("state", size, state, [&] { load_state(path, back.be, back.params); })) {
      CHECK(same(back.params, before));
      ++state;
    }
    CHECK(state == 2 + 1 + 1);
    CHECK(same(back.params, run.params));
    while (shortened("state", size, plain, [&] { WholeFile{path}; })) ++plain;
    CHECK(plain == 2);
  }
  const SafetensorsFile open(scratch / "params");
  std::filesystem::resize_file(scratch / "params", 600);
  check_refused([&] { open.read<float>(open.at("w")); }, "the end of the file after 600 bytes");
  {
    const Watching watching("pread", EIO);
    check_refused([&] { load_state(scratch / "state", run.be, run.params); },
                  "'Input/output error' while reading after 0 bytes");
  }
}

TEST_CASE("pipes that stall are refused at once") {
  const Scratch scratch;
  REQUIRE(::mkfifo((scratch / "pipe.safetensors").c_str(), 0600) == 0);
  const auto pipe = scratch / "pipe.safetensors";
  Run run;
  const std::pair<const char*, std::function<void()>> readers[] = {
      {"params", [&] { load_params(pipe, run.be, run.params); }},
      {"training", [&] { load_training(pipe, run.be, run.trainer); }},
      {"state", [&] { load_state(pipe, run.be, run.params); }},
      {"codes", [&] { open_codes(pipe); }},
      {"content", [&] { content_id(std::vector{pipe}); }},
      {"metrics", [&] { read_metrics(pipe, "run"); }},
      {"lines", [&] { JsonLines{pipe}; }}};
  for (const auto& [name, read] : readers) {
    INFO(name);
    const std::string message = in_child([&, read = read] { return error_of(read); });
    CHECK_THAT(message, contains("found a pipe or a device; expected a regular file") &&
                            contains("write what it delivers to a file, and name that"));
  }
  check_refused([&] { save_params(pipe, run.be, run.params); }, "a folder or a device");
  CHECK(scratch.files() == 1);
}

namespace {
template <class T>
struct OneOf {
  Tensor<T, 3> a;
  static void visit(auto&& f, auto&&... p) { f("a", p.a...); }
};

/// Loads a file of three numbers, the last of which are the given bytes, into parameters of type T.
template <class T>
void check_not_loaded(const Scratch& scratch, DType dtype, std::vector<unsigned char> bad,
                      const std::string& found) {
  INFO(dtype_name(dtype) << ", " << found);
  std::vector<unsigned char> bytes(2 * bad.size());
  bytes.insert(bytes.end(), bad.begin(), bad.end());
  SafetensorsWriter writer;
  detail::set_kind(writer, "params", {});
  writer.add("a", dtype, {3}, std::as_bytes(std::span(bytes)));
  writer.write(scratch / "f");
  Cpu<float> be(1);
  Store<OneOf<T>, Cpu<float>> params(be);
  params->a(0) = T(7);
  check_refused([&] { load_params(scratch / "f", be, params); },
                "tensor 'a': found " + found + " at index [2]");
  CHECK(float(params->a(0)) == 7);
}
}  // namespace

TEST_CASE("NaN and infinity in weights of every type are refused by name and place") {
  const Scratch scratch;
  const auto check = [&](DType dtype, std::vector<unsigned char> bad, const std::string& found) {
    check_not_loaded<float>(scratch, dtype, bad, found);
    check_not_loaded<double>(scratch, dtype, bad, found);
    check_not_loaded<bf16>(scratch, dtype, bad, found);
  };
  check(DType::F64, {0, 0, 0, 0, 0, 0, 0xf8, 0x7f}, "nan");
  check(DType::F64, {1, 0, 0, 0, 0, 0, 0xf0, 0x7f}, "nan");  // a signalling one
  check(DType::F64, {0, 0, 0, 0, 0, 0, 0xf0, 0x7f}, "inf");
  check(DType::F64, {0, 0, 0, 0, 0, 0, 0xf0, 0xff}, "-inf");
  check(DType::F32, {0, 0, 0xc0, 0x7f}, "nan");
  check(DType::F32, {1, 0, 0x80, 0x7f}, "nan");
  check(DType::F32, {0, 0, 0x80, 0x7f}, "inf");
  check(DType::F32, {0, 0, 0x80, 0xff}, "-inf");
  check(DType::F16, {0, 0x7e}, "nan");
  check(DType::F16, {1, 0x7c}, "nan");
  check(DType::F16, {0, 0x7c}, "inf");
  check(DType::F16, {0, 0xfc}, "-inf");
  check(DType::BF16, {0xc0, 0x7f}, "nan");
  check(DType::BF16, {0x81, 0x7f}, "nan");
  check(DType::BF16, {0x80, 0x7f}, "inf");
  check(DType::BF16, {0x80, 0xff}, "-inf");
  // Finite as they are stored, but not in the type of the model.
  check_not_loaded<float>(scratch, DType::F64, {0, 0, 0, 0, 0, 0, 0xf0, 0x47}, "3.40282e+38");  // 2^128
  check_not_loaded<bf16>(scratch, DType::F64, {0, 0, 0, 0, 0, 0, 0xf0, 0x47}, "3.40282e+38");
  check_not_loaded<bf16>(scratch, DType::F32, {0, 0x80, 0x7f, 0x7f}, "3.39618e+38");  // rounds to infinity
  check_not_loaded<bf16>(scratch, DType::F32, {0xff, 0xff, 0x7f, 0xff}, "-3.40282e+38");

  // What would not come back is not written in the first place.
  Cpu<float> be(1);
  Store<OneOf<float>, Cpu<float>> params(be);
  params->a(1) = 65520;  // the first that half precision rounds to infinity
  write_file_atomically(scratch / "f", "old");
  check_refused([&] { save_params(scratch / "f", be, params, {.dtype = DType::F16}); },
                "tensor 'a': found 65520 at element 1; expected a value that F16 holds");
  params->a(1) = 3.4e38f;
  check_refused([&] { save_params(scratch / "f", be, params, {.dtype = DType::BF16}); },
                "3.4e+38 at element 1");
  CHECK(content_of(scratch / "f") == "old");
  params->a(1) = 65519;
  save_params(scratch / "f", be, params, {.dtype = DType::F16});
  load_params(scratch / "f", be, params);
  CHECK(params->a(1) == 65504);
}

TEST_CASE("NaN in the state of a conversation and in a training is refused") {
  const Scratch scratch;
  Run run;
  Store<Weights, B> state(run.be), before(run.be);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    state->w(1, 2) = bad;
    save_state(scratch / "s", run.be, state);
    check_refused([&] { load_state(scratch / "s", run.be, before); }, "tensor 'w': ");
    check_refused([&] { load_state(scratch / "s", run.be, before); },
                  "at element 258; expected finite numbers");
    CHECK(before->w(0, 0) == 0);
    run.trainer.adam.m->w(3, 4) = bad;
    save_training(scratch / "t", run.be, run.trainer);
    check_refused([&] { load_training(scratch / "t", run.be, run.trainer); }, "'adam.m.w'");
  }
  check_refused([] { OneCycle({100, NAN}); }, "a finite rate");
}

namespace {
struct Large {
  Tensor<float, 1 << 28> w;
  static void visit(auto&& f, auto&&... p) { f("w", p.w...); }
};
struct Sessions {
  Tensor<float, dyn, 1 << 20> cache;
  static void visit(auto&& f, auto&&... p) { f("cache", p.cache...); }
};
}  // namespace

TEST_CASE("no memory: how much was wanted, for what, and what to do; the program may go on") {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  WARN("a sanitizer needs the address space that this case would take away: not tried in this build");
#else
  const Scratch scratch;
  std::ofstream(scratch / "large").put('x');
  std::filesystem::resize_file(scratch / "large", std::uintmax_t{4} << 30);  // a hole, which takes no disk
  const std::string message = in_child([&] {
    std::ifstream size("/proc/self/statm");
    rlim_t pages = 0;
    size >> pages;
    const rlim_t room = pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE)) + (rlim_t{64} << 20);
    const rlimit limit{room, room};
    if (::setrlimit(RLIMIT_AS, &limit) != 0) return std::string("no limit could be set");
    B be(1);
    std::string said = error_of([&] { Store<Large, B>{be}; }) + "\n";
    said += error_of([&] { Store<Sessions, B>(be, 512); }) + "\n";
    said += error_of([&] { Store<Sessions, B>(be, Index{1} << 50); }) + "\n";
    const auto scope = be.scope();
    said += error_of([&] { be.make<float, dyn>(Index{3} << 28); }) + "\n";
    said += error_of([&] { be.make<float, dyn>(Index{1} << 62); }) + "\n";
    said += error_of([&] { WholeFile{scratch / "large"}; }) + "\n";
    Store<Sessions, B> fits(be, 2);
    const auto piece = be.make<float, dyn>(1000);
    be.copy(piece.data(), fits->cache.data(), 1000);
    return said + "went on";
  });
  INFO(message);
  CHECK_THAT(message, contains("memory of this machine for parameters, gradients or moments: found no room; "
                               "expected 1.0 GiB more; choose a smaller model"));
  CHECK_THAT(message,
             contains("memory of this machine for the state of sessions: found no room; expected 2.0 "
                      "GiB more; lower the number of sessions"));
  CHECK_THAT(message,
             contains("memory of this machine for activations: found no room; expected 3.0 GiB more; "
                      "lower batch or steps"));
  CHECK_THAT(message, contains("for activations: found more bytes than can be counted; expected a size "));
  CHECK_THAT(message, contains("for the state of sessions: found more bytes than can be counted; expected "));
  CHECK_THAT(message, contains("large: found no memory for its 4294967296 bytes; expected a file that fits"));
  CHECK(message.ends_with("\nwent on"));
#endif
}
