#include "mttt/lm/delays.hpp"

#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"

namespace {
using namespace mttt;

constexpr Delays delays{0, 2, 1};
constexpr InitialCodes initial{90, 80};

struct Fixture {
  Cpu<float> be;
  // (2, 3, 4)
  std::vector<std::int32_t> codes{10, 11, 12, 13, 20, 21, -1, 23, 30, 31, 32, 33,
                                  40, 41, 42, 43, 50, 51, 52, 53, 60, 61, 62, 63};
  std::vector<std::int32_t> out = std::vector<std::int32_t>(24, 7);
  Streams<const std::int32_t> in() const { return {codes.data(), {2, 3, 4}}; }
  Streams<std::int32_t> to() { return {out.data(), {2, 3, 4}}; }
};
}  // namespace

TEST_CASE_METHOD(Fixture, "What is predicted: streams moved by their delays") {
  delay_codes(be, in(), delays, initial, 0, to());
  CHECK(out == std::vector<std::int32_t>{10, 11, 12, 13, 80, 80, 20, 21, 80, 30, 31, 32,  //
                                         40, 41, 42, 43, 80, 80, 50, 51, 80, 60, 61, 62});
}

TEST_CASE_METHOD(Fixture, "What is read: the same one frame back") {
  delay_codes(be, in(), delays, initial, 1, to());
  CHECK(out == std::vector<std::int32_t>{90, 10, 11, 12, 80, 80, 80, 20, 80, 80, 30, 31,  //
                                         90, 40, 41, 42, 80, 80, 80, 50, 80, 80, 60, 61});
}

TEST_CASE_METHOD(Fixture, "Undelaying gives the codes back, except those that are still to come") {
  delay_codes(be, in(), delays, initial, 0, to());
  std::vector<std::int32_t> back(24, 7);
  undelay_codes(be, to(), delays, ungenerated_code, {back.data(), {2, 3, 4}});
  CHECK(back == std::vector<std::int32_t>{10, 11, 12, 13, 20, 21, -2, -2, 30, 31, 32, -2,  //
                                          40, 41, 42, 43, 50, 51, -2, -2, 60, 61, 62, -2});
}

TEST_CASE_METHOD(Fixture, "Masks leave out what the delays cut off, and codes of nothing") {
  codes[5] = zero_code;
  std::vector<std::uint8_t> mask(16, 7);
  delay_mask(be, in(), delays, 1, {mask.data(), {2, 2, 4}});  // (stream 1, 2; B; T)
  CHECK(mask == std::vector<std::uint8_t>{1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0});
}

TEST_CASE_METHOD(Fixture, "Codes out of range are named; those of inactive sessions do not matter") {
  check_streams(be, "codes", in(), 0, {zero_code, 44, 64});
  using mttt::test::contains;
  CHECK_THROWS_WITH(check_streams(be, "codes", in(), 0, {zero_code, 43, 64}),
                    contains("code 43 in session 1, stream 0, frame 3") && contains("-1 to 42"));
  CHECK_THROWS_WITH(check_streams(be, "codes", in(), 0, {zero_code, 44, 61}),
                    contains("code 61 in session 1, stream 2, frame 1"));
  CHECK_THROWS_WITH(check_streams(be, "codes", in(), 0, {0, 44, 64}),
                    contains("code -1 in session 0, stream 1, frame 2"));
  CHECK_THROWS_WITH(check_streams(be, "codes", in(), 5, {zero_code, 44, 13}),
                    contains("code 13 in session 0, stream 5, frame 3"));  // no text among them
  const std::uint8_t mask[]{1, 0};
  check_streams(be, "codes", in(), 0, {zero_code, 40, 40}, Mask(mask, {2}));
}
