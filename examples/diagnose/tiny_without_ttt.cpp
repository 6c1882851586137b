#include "mttt/presets/tiny.hpp"
#include "subject_define.hpp"

std::unique_ptr<Subject> subject_tiny_without_ttt(const std::filesystem::path& checkpoint) {
  return std::make_unique<diagnose::SubjectOf<mttt::presets::tiny_without_ttt, Device<float>>>(
      checkpoint, "tiny_without_ttt");
}
