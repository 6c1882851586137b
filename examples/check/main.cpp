// Says whether the folder of a published model can be loaded: config, names, shapes and types of all tensors,
//                                                             and the
// tokenizer. It reads no weights and needs no memory for them.
//
//   check moshiko-pytorch-bf16
//   check --adapter my-run/checkpoints/checkpoint_002000/consolidated moshiko-pytorch-bf16
#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>

#include "../program.hpp"
#include "mttt/io/published.hpp"
#include "mttt/io/text.hpp"
#include "mttt/presets/mimi.hpp"
#include "mttt/presets/moshi.hpp"

namespace {

/// "355 tensors, 15.4 GB in BF16"
std::string contents(const mttt::TensorFiles& files, const std::string& prefix) {
  std::size_t count = 0;
  double bytes = 0;
  std::map<std::string, double> types;
  files.for_each([&](const mttt::TensorEntry& entry) {
    if (!entry.name.starts_with(prefix)) return;
    ++count, bytes += static_cast<double>(entry.bytes);
    types[std::string(mttt::stored_type(entry))] += static_cast<double>(entry.bytes);
  });
  std::string names;
  for (const auto& [name, size] : types) names += (names.empty() ? "" : ", ") + name;
  char text[100];
  std::snprintf(text, sizeof text, "%zu tensors, %.2f GB in ", count, bytes * 1e-9);
  return text + names;
}

}  // namespace

int main(int argc, char** argv) {
  std::filesystem::path folder, adapter;
  CLI::App app("Says whether the folder of a published model can be loaded.");
  app.add_option("folder", folder, "config.json, weights, Mimi and tokenizer of Moshi 7B")->required();
  app.add_option("--adapter", adapter, "lora.safetensors, or the folder that holds it");
  CLI11_PARSE(app, argc, argv);

  return run_program("check", [&] {
    using namespace mttt;
    const auto files = find_model(folder, adapter);
    const auto tell = [](const char* what, const TensorFiles& tensors, const std::string& prefix) {
      std::printf("%s: %s, names of %s\n", what, contents(tensors, prefix).c_str(),
                  name_of(name_form(tensors, prefix)));
    };
    tell("Moshi", TensorFiles(files.moshi), files.moshi_prefix);
    check_moshi<presets::moshi_7b>(files);
    tell("Mimi", TensorFiles(files.mimi), files.mimi_prefix);
    check_mimi<presets::mimi_24khz>(files);
    if (!files.adapter.empty()) {
      std::printf("adapter: %s, scaling %g\n", contents(TensorFiles(files.adapter), "").c_str(),
                  files.lora_scaling);
    }
    if (files.tokenizer.empty()) {
      std::printf("tokenizer: none in this folder; text will need tokenizer_spm_32k_3.model\n");
    } else {
      const auto tokenizer = TextTokenizer::load(files.tokenizer);
      if (tokenizer.vocab_size() != presets::moshi_7b.text_card)
        fail(files.tokenizer.string(), std::to_string(tokenizer.vocab_size()) + " pieces",
             std::to_string(presets::moshi_7b.text_card), "use the tokenizer of the model");
      std::printf("tokenizer: %d pieces\n", tokenizer.vocab_size());
    }
    std::printf("all of it fits the presets moshi_7b and mimi_24khz\n");
    return 0;
  });
}
