// The program report, as a person types it: a page from files, and errors that end it without one.
#include <cstdlib>

#include "../io/scratch.hpp"
#include "mttt/io/audio.hpp"

namespace {

/// The exit status; what the program says goes to `log`.
int report(const Scratch& scratch, const std::string& arguments) {
  const std::string command =
      "cd '" + scratch.folder.string() + "' && '" MTTT_BIN_DIR "/report' " + arguments;
  return WEXITSTATUS(std::system((command + " >log 2>&1").c_str()));
}

}  // namespace

TEST_CASE("report writes a page from files", "[e2e]") {
  Scratch scratch;
  scratch.put("metrics.jsonl",
              "{\"step\":1,\"loss\":4.5,\"lr\":0.1}\n{\"step\":2,\"loss\":4.25,\"lr\":0.1}\n");
  scratch.put("summary.json", "{\"real_time_factor\": 0.04}");
  scratch.put("words.txt", "so it goes");
  mttt::Audio stereo{std::vector<float>(9600), 2, 24000};
  for (std::size_t i = 0; i < stereo.samples.size(); i += 2)
    stereo.samples[i] = i / 2 % 50 < 25 ? 0.5f : -0.5f;
  mttt::write_audio(scratch / "reply.flac", stereo);

  REQUIRE(report(scratch,
                 "--run 'with TTT'=metrics.jsonl --run twice=metrics.jsonl --audio reply=reply.flac "
                 "--summary summary.json --transcript words.txt --note 'A toy.' --note '5 < 6' "
                 "--title First --output page.html") == 0);
  const std::string page = content_of(scratch / "page.html");
  for (const char* part :
       {"<title>First</title>", "A toy.", "5 &lt; 6", "4.50 \u2192 4.25", "twice 4.25", "0.2 s",
        "2 channels, peak \u221212", "data:audio/flac;base64,ZkxhQ", "so it goes", ">0.04<"}) {
    INFO(part);
    CHECK(page.find(part) != page.npos);
  }
}

TEST_CASE("report ends with an error and writes nothing", "[e2e]") {
  Scratch scratch;
  scratch.put("bad.txt", "none of it\n");
  const std::pair<const char*, const char*> wrong[] = {{"--run bad.txt", "NAME=FILE"},
                                                       {"--run a=bad.txt", "line 1, 'none of it'"},
                                                       {"--audio a=bad.txt", "bad.txt"},
                                                       {"--summary bad.txt", "one JSON object"},
                                                       {"--transcript missing.txt", "no such file"},
                                                       {"", "nothing to show"}};
  for (const auto& [arguments, words] : wrong) {
    INFO(arguments);
    CHECK(report(scratch, std::string(arguments) + " --output page.html") == 1);
    CHECK(content_of(scratch / "log").find(words) != std::string::npos);
    CHECK(!std::filesystem::exists(scratch / "page.html"));
  }
}
