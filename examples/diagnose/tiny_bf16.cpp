#include "mttt/presets/tiny.hpp"
#include "subject_define.hpp"

std::unique_ptr<Subject> subject_tiny_bf16(const std::filesystem::path& checkpoint) {
  return std::make_unique<diagnose::SubjectOf<mttt::presets::tiny, Device<mttt::bf16>>>(checkpoint, "tiny");
}
