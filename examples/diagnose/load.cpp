// Which of the presets that are compiled a checkpoint fits.
#include <array>

#include "mttt/io/model_config.hpp"
#include "mttt/io/published.hpp"
#include "mttt/io/run_folder.hpp"
#include "mttt/presets/tiny.hpp"
#include "subject.hpp"

namespace {

namespace fs = std::filesystem;

struct Preset {
  const char* name;
  const char* dtype;
  nlohmann::json (*config)();
  std::unique_ptr<Subject> (*load)(const fs::path&);
};
const std::array presets{
    Preset{"tiny", "f32", [] { return mttt::config_json<mttt::presets::tiny>("tiny"); }, subject_tiny},
#ifdef MTTT_EXAMPLES_CUDA
    Preset{"tiny", "bf16", [] { return mttt::config_json<mttt::presets::tiny>("tiny"); }, subject_tiny_bf16},
#endif
    Preset{"tiny_without_ttt", "f32",
           [] { return mttt::config_json<mttt::presets::tiny_without_ttt>("tiny_without_ttt"); },
           subject_tiny_without_ttt}};

fs::path checkpoint_of(const fs::path& model) {
  if (!fs::is_directory(model)) return model;
  if (fs::exists(model / "model.safetensors")) return model / "model.safetensors";
  if (const auto newest = mttt::RunFolder::newest_in(model)) return *newest;
  mttt::fail(model.string(), "no checkpoint",
             "the folder of a run of the program train, or a checkpoint of one");
}

}  // namespace

std::unique_ptr<Subject> load_subject(const fs::path& model, const std::string& dtype) {
  const fs::path checkpoint = checkpoint_of(model);
  const mttt::TensorFiles file(checkpoint);
  const auto& metadata = file.first().metadata();
  const auto found = metadata.find("config");
  const auto config = found == metadata.end() ? nlohmann::json(nlohmann::json::value_t::discarded)
                                              : mttt::detail::parse_json(found->second);
  std::string names;
  for (const Preset& preset : presets) {
    if (dtype == preset.dtype && !config.is_discarded() &&
        mttt::detail::config_problems(config, preset.config()).count() == 0)
      return preset.load(checkpoint);
    names += (names.empty() ? "" : ", ") + std::string(preset.name) + " in " + preset.dtype;
  }
  mttt::fail(checkpoint.string(),
             config.is_discarded() ? "a file without the metadata of the program train"
                                   : "a model of another configuration, or " + dtype,
             "a checkpoint of one of the compiled presets: " + names,
             "compile its preset: a file beside examples/diagnose/tiny.cpp and a line in "
             "examples/diagnose/load.cpp");
}
