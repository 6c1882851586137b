// TTT layers alone on Moshi 7B: 16 segments of 99.84 s (whole mini-batches), and in micro-batches. What is
// counted: finetune.cuh.
#include "finetune.cuh"
#include "mttt/io/published.hpp"
#include "mttt/presets/moshi.hpp"

int main() {
  using namespace mttt;
  return bench::guarded([] {
    const std::vector<GroupRule> learners{{.says = "TTT", .matches = name_contains(".ttt.")},
                                          {.says = "gates", .matches = name_contains("gating_alpha")},
                                          frozen_base_lr()};
    const LeaveOut base = [](std::string_view name) { return !is_ttt_name(name); };
    for (const int parts : {1, 4})
      bench::finetune<presets::moshi_7b_ttt>("moshi_7b_ttt", 16 / parts, 1248, parts, 2, learners, base);
  });
}
