// Why TTT layers failed to remember, cause by cause: trains small models on a task that only memory solves and
// measures what they remember, as they were trained and token by token. docs/why-ttt-failed.md is what came of it.
//
//   why_ttt_failed run --output results.jsonl                       all variants, one after the other
//   why_ttt_failed run --only parallel,ahead --output results.jsonl
//   why_ttt_failed report results.jsonl --figures docs/why          the tables, and the figures as SVG
//
// On a GPU the models are 256 wide and store in bf16, on a CPU 32 wide in float32.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <map>

#include "../program.hpp"
#include "mttt/io/json.hpp"
#include "mttt/io/json_lines.hpp"
#include "mttt/io/plot_file.hpp"
#include "variants.hpp"

namespace {
using namespace why;
using Json = nlohmann::json;

/// The first six: keys never heard, then by distance; the last one: all that were heard.
Json to_json(const Accuracy& a) {
  Json shares = Json::array();
  for (std::size_t i = 0; i < a.of.size(); ++i) shares.push_back(a.at(i));
  shares.push_back(a.heard());
  return shares;
}

Json to_json(const std::vector<InnerLoss>& layers) {
  Json all = Json::array();
  for (const InnerLoss& l : layers)
    all.push_back({{"layer", l.layer},
                   {"at_start", l.at_start},
                   {"before", l.before},
                   {"after", l.after},
                   {"violations", l.violations},
                   {"curve_at_start", l.curve_at_start},
                   {"curve_before", l.curve_before},
                   {"curve_after", l.curve_after}});
  return all;
}

Json to_json(const Variant& v, const Settings& s, const Result& r) {
  return {{"variant", v.name},
          {"model", v.says},
          {"base_lr", v.base_lr},
          {"gate", v.gate},
          {"seed", v.seed},
          {"device", r.device},
          {"batch", s.batch},
          {"length", s.length},
          {"lr", s.lr},
          {"steps", r.steps},
          {"seconds", r.seconds},
          {"ended", r.says},
          {"loss", r.loss},
          {"losses", r.losses},
          {"offline", to_json(r.offline)},
          {"longer", to_json(r.longer)},
          {"streamed", to_json(r.streamed)},
          {"padded", to_json(r.padded)},
          {"openings", r.openings},
          {"shares", r.shares},
          {"inner", to_json(r.inner)},
          {"inner_stream", to_json(r.inner_stream)}};
}

struct RunOptions {
  Settings settings;
  std::vector<std::string> only;
  int first = 0, every = 1;
  std::string output;
};

int run_all(const RunOptions& options) {
  for (const auto& name : options.only) {
    const auto known = [&](const Variant& v) { return v.name == name; };
    if (std::none_of(std::begin(variants), std::end(variants), known))
      mttt::fail("--only", "'" + name + "'", "the name of a variant", "see `list`");
  }
  mttt::JsonLines file(options.output);
  int number = 0;
  for (const Variant& v : variants) {
    if (!options.only.empty() &&
        std::find(options.only.begin(), options.only.end(), v.name) == options.only.end())
      continue;
    if (number++ % options.every != options.first) continue;
    const Result r = v.run(v, options.settings);
    file.append(to_json(v, options.settings, r));
    std::printf(
        "%-18s %5lld steps %6.1f s  loss %6.3f  heard: offline %.2f streamed %.2f  never heard %.2f%s%s\n",
        v.name, static_cast<long long>(r.steps), r.seconds, r.loss, r.offline.heard(), r.streamed.heard(),
        r.offline.at(0), r.says.empty() ? "" : "  ended: ", r.says.c_str());
    std::fflush(stdout);
  }
  return 0;
}

// The report.

double number(const Json& value) { return value.is_number() ? value.get<double>() : NAN; }

std::string cell(double value) {
  char text[16];
  std::snprintf(text, sizeof text, "%.2f", value);
  return std::isnan(value) ? "" : text;
}

struct Reported {
  std::vector<Json> lines;  // in the order of the variants

  const Json* find(std::string_view name) const {
    for (const Json& line : lines)
      if (line.at("variant") == name) return &line;
    return nullptr;
  }
};

Reported read_results(const std::vector<std::string>& paths) {
  std::map<std::string, Json> found;
  for (const auto& path : paths) {
    const mttt::WholeFile file(path);
    std::string_view rest = file.text();
    while (!rest.empty()) {
      const auto end = std::min(rest.find('\n'), rest.size());
      Json line = mttt::detail::parse_json<Json>(rest.substr(0, end));
      const auto name = line.at("variant").get<std::string>();
      found[name] = std::move(line);
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
  }
  Reported all;
  for (const Variant& v : variants)
    if (const auto at = found.find(v.name); at != found.end()) all.lines.push_back(at->second);
  if (all.lines.empty()) mttt::fail("report", "no results", "those of `run`");
  return all;
}

std::vector<double> numbers(const Json& values) {
  std::vector<double> all;
  for (const Json& value : values) all.push_back(number(value));
  return all;
}

/// The step from which the mean of ten losses is below 1, in nats.
std::string learned_at(const std::vector<double>& losses) {
  double sum = 0;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    sum += losses[i] - (i < 10 ? 0 : losses[i - 10]);
    if (i >= 10 && sum < 10) return std::to_string(i + 1);
  }
  return "never";
}

void print_accuracy(const Reported& all) {
  std::printf(
      "| variant | steps | s | loss < 1 at | last loss | to 16 | 17-32 | 33-64 | 65-128 | 129-256 of 1024 | "
      "streamed | padded | never heard |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  for (const Json& line : all.lines) {
    const Json& offline = line.at("offline");
    const bool ended = !line.at("ended").get<std::string>().empty();
    std::printf("| %s | %d%s | %.0f | %s |", line.at("model").get<std::string>().c_str(),
                line.at("steps").get<int>(), ended ? ", diverged" : "", number(line.at("seconds")),
                learned_at(numbers(line.at("losses"))).c_str());
    for (const double value :
         {number(line.at("loss")), number(offline[1]), number(offline[2]), number(offline[3]),
          number(offline[4]), number(line.at("longer")[5]), number(line.at("streamed")[6]),
          number(line.at("padded")[6]), number(offline[0])})
      std::printf(" %s |", cell(value).c_str());
    std::printf("\n");
  }
}

void print_inner_losses(const Reported& all) {
  std::printf(
      "\n| variant | layer | l(W_0) | l(W_t-1) | l(W_t) | violations | gate | share |\n"
      "|---|---|---|---|---|---|---|---|\n");
  for (const Json& line : all.lines) {
    for (const char* kind : {"inner", "inner_stream"}) {
      const Json& layers = line.at(kind);
      const auto gates = numbers(line.at("openings")), shares = numbers(line.at("shares"));
      for (std::size_t i = 0; i < layers.size(); ++i) {
        std::printf("| %s%s | %d |", line.at("model").get<std::string>().c_str(),
                    &layers == &line.at("inner") ? "" : ", streamed", layers[i].at("layer").get<int>());
        for (const char* field : {"at_start", "before", "after", "violations"})
          std::printf(" %s |", cell(number(layers[i].at(field))).c_str());
        std::printf(" %s | %s |\n", cell(i < gates.size() ? gates[i] : NAN).c_str(),
                    cell(i < shares.size() ? shares[i] : NAN).c_str());
      }
    }
  }
}

std::vector<double> counted(std::size_t n) {
  std::vector<double> all(n);
  for (std::size_t i = 0; i < n; ++i) all[i] = static_cast<double>(i + 1);
  return all;
}

void draw(const std::filesystem::path& path, const std::vector<mttt::Series>& lines,
          const mttt::ChartOptions& options) {
  mttt::write_file_atomically(path.string() + ".svg", mttt::plot_svg(lines, options));
  std::printf("%s.svg\n", path.c_str());
}

void draw_figures(const Reported& all, const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  const std::pair<const char*, const char*> told[] = {{"ahead", "hears ahead"},
                                                      {"parallel", "causal"},
                                                      {"after", "causal, after attention"},
                                                      {"window", "window only"}};
  std::vector<mttt::Series> losses;
  for (const auto& [name, says] : told) {
    const Json* line = all.find(name);
    if (line == nullptr) continue;
    const auto y = numbers(line->at("losses"));
    losses.push_back({says, counted(y.size()), y});
  }
  draw(folder / "loss", losses, {.title = "Training loss", .x_label = "step", .smooth = true});

  // Distances at the middles of their ranges, as powers of two.
  const std::vector<double> octaves{3, 4.5, 5.5, 6.5};
  std::vector<mttt::Series> remembered;
  const auto add = [&](const char* name, const char* kind, const char* says) {
    const Json* line = all.find(name);
    if (line == nullptr) return;
    const auto y = numbers(line->at(kind));
    remembered.push_back({says, octaves, {y.begin() + 1, y.begin() + 5}});
  };
  add("ahead", "offline", "hears ahead, as trained");
  add("ahead", "streamed", "streamed");
  add("ahead", "padded", "streamed with zeros");
  add("parallel", "streamed", "causal");
  draw(folder / "streamed", remembered,
       {.title = "Right answers", .x_label = "tokens since the key was heard, as a power of 2"});

  std::vector<mttt::Series> rates;
  for (const bool deep : {false, true}) {
    mttt::Series s{deep ? "TTT-MLP" : "TTT-Linear", {}, {}};
    std::vector<std::pair<double, double>> points;
    for (const Json& line : all.lines) {
      const auto name = line.at("variant").get<std::string>();
      if (!(deep ? name.starts_with("mlp") : name.starts_with("lr-") || name == "parallel")) continue;
      points.emplace_back(std::log10(number(line.at("base_lr"))), number(line.at("offline")[6]));
    }
    std::sort(points.begin(), points.end());
    for (const auto& [x, y] : points) s.x.push_back(x), s.y.push_back(y);
    rates.push_back(s);
  }
  draw(folder / "rate", rates, {.title = "Right answers", .x_label = "base_lr, as a power of 10"});

  for (const Json& line : all.lines) {
    for (const char* kind : {"inner", "inner_stream"}) {
      if (line.at(kind).empty()) continue;
      const Json& layer = line.at(kind).front();
      std::vector<mttt::Series> curves;
      for (const auto& [field, says] :
           {std::pair{"curve_at_start", "l(W_0)"}, {"curve_before", "l(W_t-1)"}, {"curve_after", "l(W_t)"}}) {
        const auto y = numbers(layer.at(field));
        curves.push_back({says, counted(y.size()), y});
      }
      draw(folder / (std::string("figure5-") + (std::string_view(kind) == "inner" ? "" : "stream-") +
                     line.at("variant").get<std::string>()),
           curves,
           {.title = line.at("model").get<std::string>() + ": layer " + layer.at("layer").dump(),
            .x_label = "token",
            .scale = mttt::Scale::log_if_wide,
            .smooth = true});
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains small models on a task that only memory solves, and says which of them remember.");
  app.require_subcommand(1);
  RunOptions options;
  Settings& s = options.settings;
  auto* run = app.add_subcommand("run", "train and ask the variants");
  run->add_option("--output", options.output, "JSON lines, one a variant")->required();
  run->add_option("--only", options.only, "names of variants")->delimiter(',');
  run->add_option("--first", options.first, "the first variant, of those taken")->capture_default_str();
  run->add_option("--every", options.every, "then every n-th")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  run->add_option("--steps", s.steps, "at most")->check(CLI::PositiveNumber)->capture_default_str();
  run->add_option("--seconds", s.seconds, "of training a variant, about; 0: no limit")->capture_default_str();
  run->add_option("--batch", s.batch, "streams a step")->check(CLI::Range(4, 4096))->capture_default_str();
  run->add_option("--length", s.length, "tokens a stream: a multiple of 64")->capture_default_str();
  run->add_option("--lr", s.lr)->capture_default_str();
  run->add_option("--evaluated", s.evaluated, "streams to be asked")
      ->check(CLI::Range(8, 65536))
      ->capture_default_str();
  std::vector<std::string> results;
  std::string figures;
  auto* report = app.add_subcommand("report", "tables and figures of results");
  report->add_option("results", results, "what `run` has written")->required();
  report->add_option("--figures", figures, "folder for figures");
  auto* list = app.add_subcommand("list", "the names of all variants");
  CLI11_PARSE(app, argc, argv);
  return run_program("why_ttt_failed", [&] {
    if (*list) {
      for (const Variant& v : variants) std::printf("%-18s %s\n", v.name, v.says);
      return 0;
    }
    if (*run) return run_all(options);
    const Reported all = read_results(results);
    const Json& first = all.lines.front();
    std::printf("%s, %d x %d tokens a step\n\n", first.at("device").get<std::string>().c_str(),
                first.at("batch").get<int>(), first.at("length").get<int>());
    print_accuracy(all);
    print_inner_losses(all);
    if (!figures.empty()) draw_figures(all, figures);
    return 0;
  });
}
