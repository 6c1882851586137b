#include "mttt/presets/moshi_small.hpp"
#include "subject_define.hpp"

std::unique_ptr<Subject> subject_moshi_small_bf16(const std::filesystem::path& checkpoint) {
  return std::make_unique<diagnose::SubjectOf<mttt::presets::moshi_small, Device<mttt::bf16>>>(checkpoint,
                                                                                               "moshi_small");
}
