// Where a training starts: at random, from a file, from another training, where it was left. As passes.hpp, it may be
// compiled in a file of its own.
#pragma once

#include "mttt/io/published.hpp"
#include "mttt/io/run_folder.hpp"
#include "options.hpp"
#include "passes.hpp"

/// What a model has beside a published one: TTT layers, gates, adapters.
inline bool is_added(std::string_view name) { return mttt::is_ttt_name(name) || mttt::is_lora_name(name); }
inline bool is_base(std::string_view name) { return !is_added(name); }

template <mttt::MoshiConfig C, mttt::StorageType T>
struct Start {
  using Pass = Passes<C, T>;
  using B = typename Pass::B;
  using Trainer = mttt::Trainer<typename Pass::P, B, typename Pass::M, Ranks>;
  using Carried = mttt::Store<typename Pass::Model::Carried, B>;

  /// The same on every backend: drawn in the host's memory. With a base to come from a file, only what is added to it is
  /// drawn.
  static void draw(B& be, Trainer& trainer, bool without_base);
  /// moshi_path is what a fine-tuning starts from; resume_from another training's checkpoint, whose optimiser and step
  /// go on unless they are reset.
  static void from_files(B& be, Trainer& trainer, const mttt::TrainConfig& config);
  /// RunFolder::resume.
  static bool resume(B& be, Trainer& trainer, mttt::RunFolder& run, const nlohmann::json& config,
                     Carried* carried);
};
