// Gathers what a training and a stream have measured into one JSON file.
//
//   summarize --run "with TTT"=runs/tiny/metrics.jsonl --stream stream.json
//             --equal gate_0_equals_base=gate0.json,base.json --output summary.json
//
// Of each run: first and last loss. Of the stream: times, memory, contribution of TTT. Of each pair given by
// --equal: whether the two streams said the same tokens.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "../program.hpp"
#include "mttt/io/file.hpp"
#include "mttt/io/json.hpp"

namespace {

using Json = nlohmann::ordered_json;

Json read_json(const std::string& path) {
  const mttt::WholeFile file(path);
  auto json = mttt::detail::parse_json<Json>(file.text());
  if (!json.is_object()) mttt::fail(path, "no JSON object", "what the program stream writes", "stream again");
  return json;
}

std::pair<std::string, std::string> split(const std::string& text, char separator, const char* option) {
  const auto at = text.find(separator);
  if (at == text.npos)
    mttt::fail(option, "'" + text + "'", std::string("two parts with '") + separator + "' between");
  return {text.substr(0, at), text.substr(at + 1)};
}

/// First and last loss of a metrics.jsonl.
Json losses_of(const std::string& path) {
  const mttt::WholeFile file(path);
  Json first, last;
  std::string_view rest = file.text();
  while (!rest.empty()) {
    const auto end = std::min(rest.find('\n'), rest.size());
    const auto line = mttt::detail::parse_json<Json>(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (!line.is_object() || !line.contains("loss")) continue;
    if (first.is_null()) first = line;
    last = line;
  }
  if (first.is_null())
    mttt::fail(path, "no line with a loss", "the metrics of a training run", "train first");
  return {{"first_loss", first["loss"]},
          {"last_loss", last["loss"]},
          {"steps", last["step"]},
          {"seconds", last["seconds"]},
          {"frames_per_second", last["frames_per_second"]}};
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> runs, equal;
  std::string stream, output;
  CLI::App app("Gathers what a training and a stream have measured into one JSON file.");
  app.add_option("--run", runs, "NAME=metrics.jsonl")->take_all();
  app.add_option("--stream", stream, "JSON written by the program stream")->required();
  app.add_option("--equal", equal, "NAME=a.json,b.json: did both streams say the same?")->take_all();
  app.add_option("--output", output, "the summary")->required();
  CLI11_PARSE(app, argc, argv);

  return run_program("summarize", [&] {
    Json summary;
    for (const auto& run : runs) {
      const auto [name, path] = split(run, '=', "--run");
      summary["training"][name] = losses_of(path);
    }
    Json streamed = read_json(stream);
    for (const char* key : {"frames", "ms_per_frame", "real_time_factor", "peak_memory_mb", "state_bytes"}) {
      summary["stream"][key] = streamed.at(key);
    }
    for (const auto& layer : streamed.at("ttt")) {
      const std::string name = "layer " + layer.at("layer").dump();
      summary["contribution_of_ttt"]["gate_opening"][name] = layer.at("gate_opening");
      summary["contribution_of_ttt"]["share_of_stream"][name] = layer.at("share_of_stream");
    }
    bool all_equal = true;
    for (const auto& pair : equal) {
      const auto [name, paths] = split(pair, '=', "--equal");
      const auto [a, b] = split(paths, ',', "--equal");
      const bool same = read_json(a).at("tokens") == read_json(b).at("tokens");
      summary["checks"][name] = same;
      all_equal = all_equal && same;
    }
    mttt::write_file_atomically(output, summary.dump(2) + "\n");
    std::printf("%s\n", summary.dump(2).c_str());
    if (!all_equal)
      mttt::fail("summarize", "streams that differ", "equal tokens", "see 'checks' in " + output);
    return 0;
  });
}
