// Writes one self-contained web page about training runs and recordings.
//
//   report --run "with TTT"=runs/ttt/metrics.jsonl --run "without TTT"=runs/plain/metrics.jsonl
//          --audio input=assets/question.flac --audio reply=build/demo/reply.wav
//          --summary build/demo/summary.json --transcript build/demo/transcript.txt
//          --note "The codec is untrained." --output build/demo/report.html
#include <CLI/CLI.hpp>
#include <cstdio>

#include "../program.hpp"
#include "mttt/io/audio.hpp"
#include "mttt/io/html_report.hpp"

namespace {

/// The command line, as it was typed.
struct Options {
  std::string title = "mttt: trained and streamed";
  std::vector<std::string> notes, runs, sounds;  // runs and sounds: NAME=FILE
  std::string transcript, summary, output;
};

mttt::ReportSound read_sound(const std::string& name, const std::string& path) {
  mttt::Audio audio = mttt::read_audio(path);
  const int channels = audio.channels;
  if (channels > 1) audio = mttt::to_mono(audio);
  return {name,
          path,
          std::move(audio.samples),
          audio.sample_rate,
          channels,
          std::string(mttt::WholeFile(path).text())};
}

mttt::Report read(const Options& options) {
  mttt::Report report{options.title, options.notes};
  for (const auto& run : options.runs) {
    const auto [name, path] = mttt::split_named("--run", run);
    report.runs.push_back(mttt::read_metrics(path, name));
  }
  for (const auto& sound : options.sounds) {
    const auto [name, path] = mttt::split_named("--audio", sound);
    report.sounds.push_back(read_sound(name, path));
  }
  if (!options.transcript.empty()) report.transcript = mttt::WholeFile(options.transcript).text();
  if (!options.summary.empty()) report.summary = mttt::read_summary(options.summary);
  return report;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Writes one self-contained web page about training runs and recordings.");
  app.add_option("--run", options.runs, "NAME=metrics.jsonl of a training run")->take_all();
  app.add_option("--audio", options.sounds, "NAME=sound file, to be shown and heard")->take_all();
  app.add_option("--summary", options.summary, "JSON object of numbers, to be shown as a table");
  app.add_option("--transcript", options.transcript, "text file: the words of the reply");
  app.add_option("--note", options.notes, "a sentence that stands first on the page")->take_all();
  app.add_option("--title", options.title, "title of the page")->capture_default_str();
  app.add_option("--output", options.output, "the page to write")->required();
  CLI11_PARSE(app, argc, argv);
  return run_program("report", [&] {
    const std::string page = mttt::report_html(read(options));
    mttt::write_file_atomically(options.output, page);
    std::printf("%s: %zu KB\n", options.output.c_str(), page.size() / 1000);
    return 0;
  });
}
