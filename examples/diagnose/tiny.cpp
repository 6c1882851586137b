#include "mttt/presets/tiny.hpp"
#include "subject_define.hpp"

std::unique_ptr<Subject> subject_tiny(const std::filesystem::path& checkpoint) {
  return std::make_unique<diagnose::SubjectOf<mttt::presets::tiny, Device<float>>>(checkpoint, "tiny");
}
