// Segments of recordings: where they come from, that they repeat exactly, and the entropy of codes.
#include "mttt/data/batches.hpp"

#include <map>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/data/loader.hpp"

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
  return Loader(batches, 0, {}).take(index).codes;
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
      const auto [recording, start, continues] = batches.segment(index, b);
      REQUIRE(!continues);
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
  CHECK_THROWS_WITH(Batches(std::vector<CodedRecording>{}, options), contains("no recordings"));
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

TEST_CASE("batches: sequential lanes play recordings from their start to their end") {
  const Index frames = 10, lanes = 2;
  const std::vector<CodedRecording> recordings{numbered(0, 25), numbered(1, 10), numbered(2, 31)};
  const Batches batches(recordings, {.batch = lanes, .frames = frames, .order = Order::sequential});
  // The queue is 0, 1, 2, 0, 1, 2, ...; a lane that is done takes its next one.
  const auto at = [&](std::int64_t index, Index b) {
    const auto s = batches.segment(index, b);
    return std::tuple(s.recording, s.start, s.continues);
  };
  CHECK(at(0, 0) == std::tuple(0u, 0, false));
  CHECK(at(0, 1) == std::tuple(1u, 0, false));
  CHECK(at(1, 0) == std::tuple(0u, 10, true));
  CHECK(at(1, 1) == std::tuple(2u, 0, false));  // exactly one segment long: done
  CHECK(at(2, 0) == std::tuple(0u, 20, true));  // 5 frames, the rest is padding
  CHECK(at(3, 0) == std::tuple(0u, 0, false));  // the queue starts anew
  CHECK(at(4, 1) == std::tuple(2u, 30, true));
  CHECK(at(5, 1) == std::tuple(1u, 0, false));
  CHECK(at(1, 1) == std::tuple(2u, 0, false));  // back again
  const auto codes = batch(batches, 2);
  CHECK(codes[4] == 24);
  CHECK(codes[5] == -1);

  // The frames before a segment, and what stands for them where a recording starts.
  Cpu<float> be;
  Loader loader(batches, 3, [](Index k) { return static_cast<std::int32_t>(-k - 7); });
  const auto before = loader.upload(be, loader.take(1).before);
  CHECK(std::vector(&before(0, 1, 0), &before(0, 1, 0) + 3) == std::vector<std::int32_t>{107, 108, 109});
  CHECK(std::vector(&before(1, 2, 0), &before(1, 2, 0) + 3) == std::vector<std::int32_t>{-9, -9, -9});
  const Mask continuing = loader.upload(be, loader.take(1).continues);
  CHECK(continuing(0) == 1);
  CHECK(continuing(1) == 0);
}

TEST_CASE("batches: longer segments from a stage on; lanes go on from where they are") {
  const Batches batches({numbered(0, 60), numbered(1, 90)},
                        {.batch = 2, .frames = 10, .order = Order::sequential, .stages = {{2, 20}, {4, 5}}});
  Loader loader(batches, 0, {});
  for (const auto& [index, frames, first] :
       {std::array<Index, 3>{0, 10, 0}, {1, 10, 10}, {2, 20, 20}, {3, 20, 40}}) {
    const auto& loaded = loader.take(index);
    REQUIRE(loaded.frames == frames);
    REQUIRE(loaded.codes.size() == static_cast<std::size_t>(2 * 3 * frames));
    CHECK(loaded.codes[0] == first);
    CHECK(loaded.codes[static_cast<std::size_t>(3 * frames)] == 1000 + first);
    CHECK(loaded.continues[0] == (index > 0));
  }
  CHECK(batches.segment(4, 0).start == 0);  // its 60 frames are over
  CHECK(batches.segment(4, 1).start == 60);
  CHECK(batches.segment(6, 1).start == 70);
  const Batches drawn({numbered(0, 60)}, {.batch = 2, .frames = 10, .stages = {{2, 60}}});
  CHECK(drawn.segment(2, 1).start == 0);
  CHECK_THROWS_WITH(Batches({numbered(0, 9)}, {.batch = 1, .frames = 3, .stages = {{2, 4}, {2, 5}}}),
                    Catch::Contains("later than micro-batch 2"));
}

TEST_CASE("loader: every micro-batch as it is, whether it was read ahead or not; errors when they are due") {
  const Batches batches({numbered(0, 50), numbered(1, 90)}, {.batch = 3, .frames = 20, .seed = 4});
  Loader loader(batches, 0, {});
  for (const std::int64_t index : {0, 1, 2, 7, 8, 3, 3}) {
    const auto& loaded = loader.take(index);
    CHECK(loaded.index == index);
    CHECK(loaded.codes == batch(batches, index));
  }
  CHECK(loader.seconds_waited() > 0);

  CodedRecording breaks = numbered(0, 40);
  breaks.fetch = [codes = std::exchange(breaks.codes, {})](Index k, Index first,
                                                           std::span<std::int32_t> out) {
    if (first >= 20) fail("a recording", "an end", "more of it");
    std::copy_n(codes.data() + k * 40 + first, out.size(), out.data());
  };
  const Batches broken({breaks}, {.batch = 1, .frames = 20, .order = Order::sequential});
  Loader reads(broken, 0, {});
  CHECK(reads.take(0).codes == batch(Batches({numbered(0, 40)}, broken.options()), 0));
  CHECK_THROWS_WITH(reads.take(1), Catch::Contains("found an end"));
}

TEST_CASE("batches: sources come in proportion to their weights, their recordings in turn") {
  const auto make = [](Order order, std::uint64_t seed = 3) {
    std::vector<DataSource> sources(2);
    sources[0] = {{numbered(0, 40), numbered(1, 4)}, 3};
    sources[1] = {{numbered(2, 400)}, 1};
    return Batches(std::move(sources), {.batch = 4, .frames = 400, .seed = seed, .order = order});
  };
  const Order order = GENERATE(Order::random, Order::sequential);
  const Batches batches = make(order);
  const int n = 4000;
  double second_source = 0;
  std::map<std::size_t, int> seen;
  for (std::int64_t index = 0; index < n / 4; ++index) {
    for (Index b = 0; b < 4; ++b) {
      const auto recording = batches.segment(index, b).recording;
      ++seen[recording];
      second_source += recording == 2;
    }
  }
  CHECK(second_source / n == Approx(0.25).margin(4 * std::sqrt(0.25 * 0.75 / n)));
  if (order == Order::sequential) CHECK(std::abs(seen[0] - seen[1]) <= 1);
  if (order == Order::random) CHECK(seen[0] == Approx(10 * seen[1]).epsilon(0.3));
  CHECK(batch(batches, 77) == batch(make(order), 77));
  CHECK(batch(batches, 77) != batch(make(order, 4), 77));
  std::vector<DataSource> empty(2);
  empty[0].recordings = {numbered(0, 4)};
  CHECK_THROWS_WITH(Batches(empty, {.batch = 1, .frames = 4}),
                    test::contains("source 1: found no recordings"));
  empty[0].weight = 0;
  CHECK_THROWS_WITH(Batches(empty, {.batch = 1, .frames = 4}), test::contains("weight 0.0"));
}

TEST_CASE("batches: the ranks' shares are the whole micro-batch, in order, whatever their number") {
  const std::vector<CodedRecording> recordings{numbered(0, 50), numbered(1, 90), numbered(2, 33)};
  for (const Order order : {Order::random, Order::sequential}) {
    const BatchOptions whole{.batch = 5, .frames = 16, .seed = 3, .order = order};
    const Batches alone(recordings, whole);
    for (const int size : {2, 3, 5}) {
      for (const std::int64_t index : {0, 1, 7}) {
        std::vector<std::int32_t> joined;
        for (int rank = 0; rank < size; ++rank) {
          const auto own = batch(Batches(recordings, share_of(whole, rank, size)), index);
          joined.insert(joined.end(), own.begin(), own.end());
        }
        CHECK(joined == batch(alone, index));
      }
    }
    CHECK_THROWS_WITH(share_of(whole, 0, 6), test::contains("5 segments"));
  }
}
