// What a model remembers of a conversation, by the kind of its memory: trains models of one size on conversations in
// which facts are told and asked for, and asks them. bench/memory.sh makes the data and runs it; docs/memory.md is what
// came of it.
//
//   recall --stage easy/train.jsonl:300:2000 --stage far/train.jsonl:600:2000 --test near:near/test.jsonl
//     --only linear,local --seeds 1,2,3 --output results.jsonl
#include <CLI/CLI.hpp>
#include <cstdio>
#include <sstream>

#include "../program.hpp"
#include "mttt/io/json_lines.hpp"
#include "variants.hpp"

namespace {
using namespace recalls;

/// "a:b:c" in its parts, from the right, so that the first may hold colons.
std::vector<std::string> parts_of(const std::string& text, std::size_t count, const char* expected) {
  std::vector<std::string> parts;
  std::string rest = text;
  while (parts.size() + 1 < count) {
    const auto colon = rest.rfind(':');
    if (colon == rest.npos) mttt::fail("the option", "'" + text + "'", expected, "correct it");
    parts.insert(parts.begin(), rest.substr(colon + 1));
    rest.resize(colon);
  }
  parts.insert(parts.begin(), rest);
  return parts;
}

Index whole_number(const std::string& text, const char* expected) {
  std::istringstream in(text);
  Index value = 0;
  if (!(in >> value) || value < 1 || !in.eof())
    mttt::fail("the option", "'" + text + "'", expected, "correct it");
  return value;
}

int recall(int argc, char** argv) {
  Settings settings;
  std::vector<std::string> stages, tests, only;
  std::vector<std::uint64_t> seeds{1};
  std::string output;
  CLI::App app("Trains models with different memories on conversations, and asks what they remember.");
  app.option_defaults()->always_capture_default();
  constexpr const char *a_stage = "MANIFEST:FRAMES:STEPS", *a_test = "NAME:MANIFEST";
  app.add_option("--stage", stages, "MANIFEST:FRAMES:STEPS, one after the other; segments of so many frames")
      ->required();
  app.add_option("--test", tests, "NAME:MANIFEST of conversations with questions")->required();
  app.add_option("--only", only, "variants, of those there are")->delimiter(',');
  app.add_option("--seeds", seeds, "of start and order")->delimiter(',');
  app.add_option("--output", output, "results, a line of JSON each; appended")->required();
  app.add_option("--frames-a-step", settings.frames_a_step, "in all segments")->check(CLI::PositiveNumber);
  app.add_option("--lr", settings.lr, "at its most")->check(CLI::PositiveNumber);
  app.add_option("--text-padding-weight", settings.text_padding_weight, "of frames without a word")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--text-embedding", settings.text_embedding,
                 "the start of the text's embedding, as a multiple of that of every other stream")
      ->check(CLI::PositiveNumber);
  app.add_option("--outputs", settings.outputs,
                 "the start of what the temporal layers' last products add, as a multiple of the usual")
      ->check(CLI::PositiveNumber);
  app.add_option("--look-every", settings.look_every, "steps between two looks at the tests; 0: none")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--looked-at", settings.looked_at, "recordings of each test then")
      ->check(CLI::PositiveNumber);
  app.add_option("--from", settings.from, "start from this model")->check(CLI::ExistingFile);
  app.add_option("--save", settings.save, "where to keep the model that was trained");
  CLI11_PARSE(app, argc, argv);
  for (const auto& text : stages) {
    const auto parts = parts_of(text, 3, a_stage);
    settings.stages.push_back({parts[0], whole_number(parts[1], a_stage), whole_number(parts[2], a_stage)});
  }
  for (const auto& text : tests) {
    const auto colon = text.find(':');
    if (colon == text.npos) mttt::fail("--test", "'" + text + "'", a_test, "correct it");
    settings.tests.push_back({text.substr(0, colon), text.substr(colon + 1)});
  }
  std::string names;
  for (const Variant& v : variants) names += (names.empty() ? "" : ", ") + std::string(v.name);
  for (const auto& name : only) {
    if (std::none_of(std::begin(variants), std::end(variants),
                     [&](const Variant& v) { return v.name == name; }))
      mttt::fail("--only", "'" + name + "'", names, "correct it");
  }
  mttt::JsonLines file(output);
  for (const std::uint64_t seed : seeds) {
    for (const Variant& v : variants) {
      if (!only.empty() && std::find(only.begin(), only.end(), v.name) == only.end()) continue;
      const auto result = v.run(v, settings, seed);
      file.append(result);
      std::printf("%-8s seed %llu  %.2f million, %lld steps in %.1f s\n", v.name,
                  static_cast<unsigned long long>(seed), result.at("parameters").get<double>() * 1e-6,
                  static_cast<long long>(result.at("steps").get<std::int64_t>()),
                  result.at("seconds").get<double>());
      for (const auto& [name, test] : result.at("tests").items()) {
        std::printf("  %s:", name.c_str());
        const auto known = test.at("known").get<std::vector<Index>>(),
                   asked = test.at("asked").get<std::vector<Index>>();
        for (std::size_t i = 0; i < asked.size(); ++i)
          asked[i] > 0 ? std::printf(" %td/%td", known[i], asked[i]) : std::printf(" -");
        std::printf("\n");
      }
      std::fflush(stdout);
    }
  }
  return 0;
}
}  // namespace

int main(int argc, char** argv) {
  return run_program("recall", [&] { return recall(argc, argv); });
}
