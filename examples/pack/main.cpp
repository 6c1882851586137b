// Writes a trained model or codec in the form that ships: large weights in 8 bits, the rest in 16.
//
//   pack run/model.safetensors moshi_small.safetensors
#include <CLI/CLI.hpp>
#include <cstdio>

#include "../program.hpp"
#include "mttt/io/pack.hpp"

int main(int argc, char** argv) {
  std::filesystem::path from, to;
  CLI::App app("Writes a trained model or codec in 8 and 16 bits, to ship.");
  app.add_option("from", from, "what train or train_codec wrote")->required()->check(CLI::ExistingFile);
  app.add_option("to", to, "the new file")->required();
  CLI11_PARSE(app, argc, argv);
  return run_program("pack", [&] {
    const auto before = std::filesystem::file_size(from), after = mttt::pack_model(from, to);
    std::printf("%s: %.2f MB, of %.2f\n", to.c_str(), 1e-6 * static_cast<double>(after),
                1e-6 * static_cast<double>(before));
    return 0;
  });
}
