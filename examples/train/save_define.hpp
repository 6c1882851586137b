// What save.hpp declares, for any configuration of the model.
#pragma once

#include <cstdio>

#include "mttt/io/model_config.hpp"
#include "save.hpp"
#include "start.hpp"

template <mttt::MoshiConfig C, mttt::StorageType T>
void Save<C, T>::model(B& be, Trainer& trainer, const std::filesystem::path& folder,
                       const std::string& preset, bool adapters) {
  using namespace mttt;
  constexpr MoshiConfig fused = C.with_lora(0);
  const std::string suffix = "_lora";
  const bool named = preset.ends_with(suffix);
  SaveOptions options{
      .config = config_json<fused>(named ? preset.substr(0, preset.size() - suffix.size()) : preset)};
  const auto file = folder / (adapters ? "lora.safetensors" : "model.safetensors");
  if (adapters) {
    options.metadata["base"] = "elsewhere";
    save_weights(file, be, trainer, options, frozen_base(trainer, is_base));
    if (C.lora.rank > 0 && trainer.ranks().rank() == 0) {
      nlohmann::json about;  // as other programs expect it
      about["lora"] = true, about["lora_name"] = "lora.safetensors";
      about["lora_rank"] = C.lora.rank, about["lora_scaling"] = C.lora.scaling;
      write_file_atomically(folder / "config.json", about.dump(2));
    }
  } else {
    if constexpr (C.lora.rank > 0) {
      auto stored = be.template as<Wide<typename B::Scalar>>();
      if constexpr (Trainer::mixed) fuse_adapters(be, *trainer.whole_params(), C.lora.scaling);
      trainer.edit_weights([&](auto& all) { fuse_adapters(stored, *all, C.lora.scaling); });
    }
    save_weights(file, be, trainer, options, C.lora.rank > 0 ? LeaveOut(is_lora_name) : LeaveOut());
  }
  if (trainer.ranks().rank() == 0) std::printf("wrote %s\n", file.c_str());
}
