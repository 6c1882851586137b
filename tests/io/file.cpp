// Atomic files, whole files, JSON lines: round trips, and what is left behind when something fails.
#include "mttt/io/file.hpp"

#include <stdexcept>

#include "mttt/io/json_lines.hpp"
#include "scratch.hpp"

TEST_CASE("a file is written whole and read back", "[io]") {
  Scratch scratch;
  const auto path = scratch / "a.bin";
  std::string content(100'000, '\0');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7);
  mttt::write_file_atomically(path, content);
  CHECK(scratch.files() == 1);
  mttt::WholeFile file(path);
  CHECK(file.text() == content);
  mttt::WholeFile moved(std::move(file));
  CHECK(moved.text() == content);
  CHECK(file.bytes().empty());

  mttt::write_file_atomically(path, [](mttt::FileSink& sink) {
    sink.write("one ");
    sink.write("two");
    CHECK(sink.written() == 7);
  });
  CHECK(content_of(path) == "one two");
  CHECK(moved.text() == content);  // a copy

  mttt::write_file_atomically(path, "");
  CHECK(mttt::WholeFile(path).bytes().empty());
}

TEST_CASE("a failed write leaves the old file and no temporary", "[io]") {
  Scratch scratch;
  const auto path = scratch.put("a.bin", "old");
  CHECK_THROWS_AS(mttt::write_file_atomically(path,
                                              [](mttt::FileSink& sink) {
                                                sink.write("half");
                                                throw std::logic_error("the caller's own");
                                              }),
                  std::logic_error);
  CHECK(content_of(path) == "old");
  CHECK(scratch.files() == 1);

  {
    const FileSizeLimit limit(1000);
    check_refused([&] { mttt::write_file_atomically(path, std::string(4096, 'x')); }, "after 1000 bytes");
  }
  CHECK(content_of(path) == "old");
  CHECK(scratch.files() == 1);

  const mttt::detail::Descriptor full(::open("/dev/full", O_WRONLY));
  check_refused([&] { mttt::FileSink(full.get(), "x").write("a"); }, "No space left on device");
  check_refused([&] { mttt::FileSink(full.get(), "x").write("a"); }, "make space on that disk");
}

TEST_CASE("places where no file can be written are refused", "[io]") {
  Scratch scratch;
  check_refused([&] { mttt::write_file_atomically(scratch / "none/a.bin", "x"); }, "opening its folder");
  check_refused([&] { mttt::write_file_atomically(scratch.folder, "x"); }, "a folder or a device");
  check_refused([&] { mttt::write_file_atomically(scratch.folder.string() + "/", "x"); },
                "a folder or a device");
  check_refused([] { mttt::write_file_atomically("/dev/full", "x"); }, "a folder or a device");
  check_refused([] { mttt::write_file_atomically("/proc/mttt", "x"); }, "creating a temporary file");
  const auto path = scratch.put("a.bin", "old");
  std::filesystem::permissions(scratch.folder,
                               std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  if (::access(scratch.folder.c_str(), W_OK) != 0) {  // root may write everywhere
    check_refused([&] { mttt::write_file_atomically(path, "x"); }, "check the permissions");
  }
  std::filesystem::permissions(scratch.folder, std::filesystem::perms::owner_all);
  CHECK(scratch.files() == 1);
}

TEST_CASE("links and permissions of the old file survive", "[io]") {
  Scratch scratch;
  const auto target = scratch.put("target", "old");
  std::filesystem::permissions(target, std::filesystem::perms(0640));
  std::filesystem::create_symlink("target", scratch / "link");
  mttt::write_file_atomically(scratch / "link", "new");
  CHECK(std::filesystem::is_symlink(scratch / "link"));
  CHECK(content_of(target) == "new");
  CHECK(std::filesystem::status(target).permissions() == std::filesystem::perms(0640));
}

TEST_CASE("what cannot be read whole is refused", "[io]") {
  Scratch scratch;
  check_refused([&] { mttt::WholeFile(scratch / "none"); }, "no such file");
  check_refused([&] { mttt::WholeFile(scratch.folder); }, "a folder");
  REQUIRE(::mkfifo((scratch / "pipe").c_str(), 0600) == 0);
  check_refused([&] { mttt::WholeFile(scratch / "pipe"); }, "a pipe or a device");
}

TEST_CASE("JSON lines survive half lines and full disks", "[io]") {
  Scratch scratch;
  const auto path = scratch / "metrics.jsonl";
  {
    mttt::JsonLines lines(path);
    lines.append({{"step", 1}, {"loss", 2.5}});
    lines.append({{"note", "line\nbreak, and \xff"}});
    CHECK(lines.repaired() == 0);
  }
  const std::string whole = content_of(path);
  CHECK(std::count(whole.begin(), whole.end(), '\n') == 2);

  for (const std::string half : {"{", "{\"step\": 2, \"lo", "{\"step\": 2"}) {
    scratch.put("metrics.jsonl", whole + half);
    mttt::JsonLines lines(path);
    CHECK(lines.repaired() == half.size());
    CHECK(content_of(path) == whole);
    lines.append({{"step", 2}});
    CHECK(content_of(path) == whole + "{\"step\":2}\n");
  }
  scratch.put("metrics.jsonl", whole + "{\"step\":2}");
  CHECK(mttt::JsonLines(path).repaired() == 0);
  CHECK(content_of(path) == whole + "{\"step\":2}\n");

  scratch.put("metrics.jsonl", "no line end at all");
  CHECK(mttt::JsonLines(path).repaired() == 18);
  CHECK(content_of(path).empty());

  mttt::JsonLines lines(path);
  lines.append({{"step", 1}});
  {
    const FileSizeLimit limit(20);
    check_refused([&] { lines.append({{"text", std::string(100, 'x')}}); }, "make space on that disk");
  }
  CHECK(content_of(path) == "{\"step\":1}\n");
  lines.append({{"step", 2}});
  CHECK(content_of(path) == "{\"step\":1}\n{\"step\":2}\n");
  check_refused([&] { mttt::JsonLines(scratch / "none/a.jsonl"); }, "opening it");
}
