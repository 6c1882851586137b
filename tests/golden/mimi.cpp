// Mimi with an attention window longer than the recording.
#include "mimi_golden.hpp"
#include "mttt/io/checkpoint.hpp"

TEST_CASE("Mimi equals the published implementation") { mttt::testing::MimiGolden<64>("mimi_tiny").all(); }
