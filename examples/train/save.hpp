// The end of a training: adapters, for the base that it started from, or a model that needs neither. What either makes of
// the base is a model of a preset without adapters. As passes.hpp, it may be compiled in a file of its own.
#pragma once

#include <filesystem>
#include <string>

#include "mttt/train/trainer.hpp"
#include "passes.hpp"

template <mttt::MoshiConfig C, mttt::StorageType T>
struct Save {
  using Pass = Passes<C, T>;
  using B = typename Pass::B;
  using Trainer = mttt::Trainer<typename Pass::P, B, typename Pass::M, Ranks>;

  static void model(B& be, Trainer& trainer, const std::filesystem::path& folder, const std::string& preset,
                    bool adapters);
};
