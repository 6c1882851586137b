// LMGen against the published one.
#include "moshi_stream_golden.hpp"

TEST_CASE("60 greedy frames say the published codes, with the published text logits") {
  mttt::testing::greedy_frames_equal_published<mttt::Cpu<float>>(GENERATE(1, 2));
}
