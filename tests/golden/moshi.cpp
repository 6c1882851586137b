// Moshi against the published LMModel.
#include "moshi_golden.hpp"

TEST_CASE("Moshi's teacher-forced logits equal the published ones") {
  mttt::testing::logits_equal_published<mttt::Cpu<float>>();
}
