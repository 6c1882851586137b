// Segments of recordings: where they come from, that they repeat exactly, and the entropy of codes.
#include "mttt/data/batches.hpp"

#include <map>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"

namespace {
using namespace mttt;

/// Codes that say where they stand: 1000 * recording + 100 * stream + frame.
CodedRecording numbered(Index recording, Index frames, Index streams = 3) {
  CodedRecording r{streams, frames, {}, 12.5, 10000, 10000, "codec", "source"};
  for (Index k = 0; k < streams; ++k) {
    for (Index t = 0; t < frames; ++t)
      r.codes.push_back(static_cast<std::int32_t>(1000 * recording + 100 * k + t));
  }
  return r;
}
std::vector<std::int32_t> batch(const Batches& batches, std::int64_t index) {
  Cpu<float> be;
  const auto codes = batches.make(be, index);
  return {codes.data(), codes.data() + codes.size()};
}
}  // namespace

TEST_CASE("batches: a segment is a piece of one recording, the same frames of all streams") {
  const Batches batches({numbered(0, 50), numbered(1, 90)}, {.batch = 4, .frames = 20});
  std::map<Index, int> seen;
  for (std::int64_t index = 0; index < 50; ++index) {
    const auto codes = batch(batches, index);
    REQUIRE(codes.size() == 4 * 3 * 20);
    for (Index b = 0; b < 4; ++b) {
      const auto* segment = codes.data() + b * 60;
      const Index recording = segment[0] / 1000, start = segment[0] % 1000;
      ++seen[recording];
      REQUIRE(start + 20 <= (recording == 0 ? 50 : 90));
      for (Index k = 0; k < 3; ++k) {
        for (Index t = 0; t < 20; ++t) REQUIRE(segment[k * 20 + t] == 1000 * recording + 100 * k + start + t);
      }
    }
  }
  CHECK(seen.size() == 2);
}

TEST_CASE("batches: recordings come in proportion to their frames, starts evenly") {
  const Batches batches({numbered(0, 25), numbered(1, 75)}, {.batch = 8, .frames = 16, .seed = 5});
  const int n = 4000;
  double second = 0;
  std::map<Index, int> starts;
  for (std::int64_t index = 0; index < n / 8; ++index) {
    for (Index b = 0; b < 8; ++b) {
      const auto [recording, start] = batches.segment(index, b);
      second += recording == 1;
      if (recording == 0) ++starts[start];
    }
  }
  CHECK(second / n == Approx(0.75).margin(4 * std::sqrt(0.75 * 0.25 / n)));  // four standard errors
  REQUIRE(starts.size() == 10);                                              // 0 to 25 - 16
  for (const auto& [start, count] : starts) CHECK(count == Approx(100).margin(45));
}

TEST_CASE("batches: a micro-batch depends on the seed and its number alone") {
  const std::vector<CodedRecording> recordings{numbered(0, 60), numbered(1, 40)};
  const BatchOptions options{.batch = 3, .frames = 10, .seed = 1};
  const Batches first(recordings, options), again(recordings, options);
  const auto late = batch(again, 1'000'000'007);
  for (std::int64_t i = 0; i < 5; ++i) CHECK(batch(first, i) == batch(again, i));
  CHECK(batch(first, 1'000'000'007) == late);
  CHECK(batch(first, 0) != batch(first, 1));
  CHECK(batch(first, 0) != batch(Batches(recordings, {.batch = 3, .frames = 10, .seed = 2}), 0));
}

TEST_CASE("batches: a recording shorter than a segment is padded with -1") {
  const Batches batches({numbered(0, 3)}, {.batch = 2, .frames = 5});
  CHECK(batch(batches, 9) == std::vector<std::int32_t>{0,   1,   2,   -1, -1, 100, 101, 102, -1, -1,
                                                       200, 201, 202, -1, -1, 0,   1,   2,   -1, -1,
                                                       100, 101, 102, -1, -1, 200, 201, 202, -1, -1});
  // One of exactly the length of a segment has one place to start.
  CHECK(batch(Batches({numbered(0, 3, 2)}, {.batch = 1, .frames = 3}), 4) ==
        std::vector<std::int32_t>{0, 1, 2, 100, 101, 102});
}

TEST_CASE("batches: recordings that do not belong together are refused") {
  using test::contains;
  const BatchOptions options{.batch = 1, .frames = 4};
  CHECK_THROWS_WITH(Batches({}, options), contains("no recordings"));
  CHECK_THROWS_WITH(Batches({numbered(0, 9)}, {.batch = 0, .frames = 4}), contains("0 segments of 4 frames"));
  CHECK_THROWS_WITH(Batches({numbered(0, 9), numbered(1, 9, 4)}, options),
                    contains("recording 1: found 4 streams"));
  auto other = numbered(1, 9);
  other.codec = "another";
  CHECK_THROWS_WITH(Batches({numbered(0, 9), other}, options), contains("codec 'another'"));
  auto bad = numbered(0, 9);
  bad.codes[13] = 10000;
  CHECK_THROWS_WITH(Batches({bad}, options), contains("code 10000 in stream 1, frame 4"));
  const Batches batches({numbered(0, 9)}, options);
  std::vector<std::int32_t> room(12);
  CHECK_THROWS_WITH(batches.fill(0, {room.data(), {1, 4, 3}}), contains("another shape"));
}

TEST_CASE("entropy: bits a code") {
  using Codes = std::vector<std::int32_t>;
  CHECK(entropy(Codes{}) == 0);
  CHECK(entropy(Codes{5, 5, 5}) == 0);
  CHECK(entropy(Codes{0, 1, 2, 3}) == Approx(2));
  CHECK(entropy(Codes{7, 7, 9, 9, -1, -1}) == Approx(1));
  CHECK(entropy(Codes{0, 0, 0, 1}) == Approx(0.8112781245));
}
