// The recordings of assets/: their layout, and that their words are where the sidecars say.
#include <cmath>

#include "catch.hpp"
#include "mttt/io/alignment.hpp"
#include "mttt/io/audio.hpp"

namespace {
using namespace mttt;
const std::filesystem::path assets = std::filesystem::path(MTTT_SOURCE_DIR) / "assets";

std::vector<std::filesystem::path> conversations() {
  std::vector<std::filesystem::path> paths;
  for (const auto& item : std::filesystem::directory_iterator(assets / "train")) {
    if (item.path().extension() == ".flac") paths.push_back(item.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

/// Root mean square of the samples for which wanted(seconds) holds, in decibels below full scale.
template <class F>
double level(const Audio& mono, F&& wanted) {
  double sum = 0, n = 0;
  for (std::size_t i = 0; i < mono.samples.size(); ++i) {
    if (!wanted(static_cast<double>(i) / mono.sample_rate)) continue;
    sum += mono.samples[i] * mono.samples[i];
    ++n;
  }
  return 10 * std::log10(sum / std::max(n, 1.0) + 1e-12);
}
}  // namespace

TEST_CASE("assets: a minute or two of stereo conversations, both sides of which speak") {
  double seconds = 0;
  std::uintmax_t bytes = 0;
  for (const auto& path : conversations()) {
    INFO(path);
    const Audio audio = read_audio(path);
    expect_format(audio, 24000, 2);
    seconds += audio.seconds();
    bytes += std::filesystem::file_size(path);
    const auto always = [](double) { return true; };
    CHECK(level(to_mono(audio, Mono::left), always) > -35);
    CHECK(level(to_mono(audio, Mono::right), always) > -35);
  }
  CHECK(seconds > 60);
  CHECK(seconds < 120);
  CHECK(bytes < 4'000'000);
}

TEST_CASE("assets: every word of a sidecar is loud on the left, what lies between them is not") {
  for (const auto& path : conversations()) {
    INFO(path);
    const Audio left = to_mono(read_audio(path), Mono::left);
    const auto words = read_alignment(sidecar_of(path));
    REQUIRE(words.size() > 15);
    double end = 0;
    for (const Word& word : words) {
      INFO(word.text << " from " << word.start << " to " << word.end);
      CHECK(word.speaker == main_speaker);
      CHECK(word.start >= end - 1e-9);
      CHECK(word.end - word.start > 0.02);
      CHECK(word.end - word.start < 1);
      CHECK(word.end <= left.seconds());
      CHECK(level(left, [&](double t) { return t >= word.start && t < word.end; }) > -40);
      end = word.end;
    }
    const auto outside = [&](double t) {
      return std::none_of(words.begin(), words.end(), [&](auto& w) { return t >= w.start && t < w.end; });
    };
    CHECK(level(left, outside) < -50);
  }
}

TEST_CASE("assets: the question is speech, then time to answer") {
  const Audio question = load_mono(assets / "question.flac", 24000);
  CHECK(question.seconds() == Approx(11));
  CHECK(level(question, [](double t) { return t < 7.3; }) > -30);
  CHECK(level(question, [](double t) { return t > 7.5; }) < -100);
}
