// LoRA of rank 128 on Moshi 7B, as moshi-finetune's example has it (16 segments of 100 s), and in
// micro-batches. What is counted: finetune.cuh.
#include "finetune.cuh"
#include "mttt/presets/moshi.hpp"

int main() {
  using namespace mttt;
  return bench::guarded([] {
    const std::vector<GroupRule> adapters{{.says = "adapters", .matches = name_contains("lora_")}};
    const LeaveOut base = [](std::string_view name) { return !is_lora_name(name); };
    for (const int parts : {1, 4})
      bench::finetune<presets::moshi_7b_lora>("moshi_7b_lora", 16 / parts, 1250, parts, 2, adapters, base);
  });
}
