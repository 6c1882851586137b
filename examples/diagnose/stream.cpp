// diagnose stream: a long conversation; whether time, memory, fast weights and speech stay as they were.
#include "commands.hpp"

using namespace diagnose;

namespace {

double median(std::vector<double> values) {
  if (values.empty()) return NAN;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// One tenth of a stream, the first being 0.
std::vector<double> tenth(const std::vector<double>& all, std::size_t which) {
  const std::size_t from = which * all.size() / 10, to = (which + 1) * all.size() / 10;
  return {all.begin() + static_cast<std::ptrdiff_t>(from), all.begin() + static_cast<std::ptrdiff_t>(to)};
}

}  // namespace

int stream(Subject& subject, const std::vector<Recording>& recordings, const Options& options) {
  const auto& recording = recordings[0].codes;
  const auto frames = static_cast<mttt::Index>(std::max(100.0, options.minutes * 60 * recording.frame_rate));
  TalkOptions talk{.gen = {},
                   .frames = frames,
                   .seed = options.seed,
                   .look_every = std::max<mttt::Index>(1, frames / 100)};
  talk.gen.text.temperature = options.temperatures[0];
  talk.gen.audio.temperature = options.audio_temperature;
  const Talked talked = subject.talk(recording, talk);

  std::vector<double> ms;
  for (const double s : talked.seconds) ms.push_back(1e3 * s);
  const auto window = window_for(ms.size(), options.window);
  const double early = median(tenth(ms, 1)), late = median(tenth(ms, 9));
  const double memory_early = talked.looks[talked.looks.size() / 10].memory_mb,
               memory_late = talked.looks.back().memory_mb;

  const auto spoken = static_cast<std::size_t>(1 + subject.facts.dep_q);
  mttt::Series pauses{"pauses", {}, {}}, repeated{"frames repeated", {}, {}}, words{"words repeated", {}, {}};
  std::vector<Fluency> parts;
  const std::size_t each = std::max<std::size_t>(50, ms.size() / 20);
  for (std::size_t at = 0; at + each <= ms.size(); at += each) {
    parts.push_back(fluency_of({talked.said.begin() + static_cast<std::ptrdiff_t>(at * spoken),
                                talked.said.begin() + static_cast<std::ptrdiff_t>((at + each) * spoken)},
                               subject.facts, recording.frame_rate));
    const double x = static_cast<double>(at) + static_cast<double>(each) / 2;
    for (auto* series : {&pauses, &repeated, &words}) series->x.push_back(x);
    pauses.y.push_back(parts.back().pauses);
    repeated.y.push_back(parts.back().repeated_frames);
    words.y.push_back(parts.back().repeated_words);
  }
  std::vector<mttt::Series> drift;
  for (std::size_t l = 0; l < subject.facts.ttt_layers.size(); ++l) {
    drift.push_back({"layer " + std::to_string(subject.facts.ttt_layers[l]), {}, {}});
    for (const Look& look : talked.looks)
      drift.back().x.push_back(static_cast<double>(look.frame)), drift.back().y.push_back(look.drift[l]);
  }

  std::string wrong;
  if (late > 1.2 * early)
    wrong +=
        " A frame takes " + number_text(late, 3) + " ms at the end, " + number_text(early, 3) + " at first.";
  if (memory_late > memory_early + std::max(1.0, 0.02 * memory_early))
    wrong += " Memory grew by " + number_text(memory_late - memory_early, 3) + " MB.";
  for (const auto& line : drift) {
    const double half = line.y[line.y.size() / 2], end = line.y.back();
    if (!std::isfinite(end) || (end > 1.5 * half && end > 1))
      wrong += " The fast weights of " + line.name + " run away: " + number_text(half, 3) +
               " of W_0 at half of the way, " + number_text(end, 3) + " at the end.";
  }
  const auto quarter = std::max<std::size_t>(1, parts.size() / 4);
  double first_words = 0, last_words = 0, last_frames = 0, last_pauses = 0, first_pauses = 0;
  for (std::size_t i = 0; i < quarter && i < parts.size(); ++i) {
    const Fluency &a = parts[i], &b = parts[parts.size() - 1 - i];
    const auto n = static_cast<double>(quarter);
    first_words += a.repeated_words / n, last_words += b.repeated_words / n,
        last_frames += b.repeated_frames / n;
    first_pauses += a.pauses / n, last_pauses += b.pauses / n;
  }
  if (last_words > 0.5 && last_words > 1.3 * first_words) wrong += " It has come to repeat its words.";
  if (last_frames > 0.5) wrong += " Its voice stands still.";
  if (last_pauses > 0.99 && first_pauses < 0.95) wrong += " It has fallen silent.";

  Page page(options.output, "stream", title_of("A long conversation", subject.facts));
  const double minutes = static_cast<double>(frames) / recording.frame_rate / 60;
  page.verdict("After " + number_text(minutes, 3) + " minutes (" + std::to_string(frames) + " frames)" +
                   (wrong.empty() ? " everything is as it was: " + number_text(late, 3) + " ms a frame, " +
                                        number_text(talked.state_mb, 3) + " MB of state."
                                  : ":" + wrong),
               wrong.empty());
  const std::vector<mttt::Series> time = {windowed("ms a frame", ms, window)};
  page.section(page.chart("stream_time", time, {.title = "Time of a frame, ms", .x_label = "frame"}));
  std::string small;
  if (!drift.empty())
    small += page.chart("stream_drift", drift,
                        {.title = "Drift |W - W_0| / |W_0|", .x_label = "frame", .ticks = 3});
  mttt::Series memory{"MB", {}, {}};
  for (const Look& look : talked.looks)
    memory.x.push_back(static_cast<double>(look.frame)), memory.y.push_back(look.memory_mb);
  small += page.chart("stream_memory", std::span(&memory, 1),
                      {.title = "Memory of the process, MB", .x_label = "frame", .ticks = 3});
  const std::vector<mttt::Series> speech = {pauses, repeated, words};
  small += page.chart("stream_speech", speech,
                      {.title = "Pauses and repetition, shares", .x_label = "frame", .ticks = 3});
  page.small_section(small);
  std::vector<double> sorted = ms;
  std::sort(sorted.begin(), sorted.end());
  const auto at = [&](double p) {
    return number_text(sorted[static_cast<std::size_t>(p * static_cast<double>(sorted.size() - 1))], 4);
  };
  const Fluency all = fluency_of(talked.said, subject.facts, recording.frame_rate);
  page.section(table_html({{"", ""},
                           {"ms a frame, p50", at(0.5)},
                           {"p99", at(0.99)},
                           {"largest", at(1)},
                           {"MB of state a session", number_text(talked.state_mb)},
                           {"MB of the process, at a tenth of the way", number_text(memory_early)},
                           {"at the end", number_text(memory_late)},
                           {"words a minute", number_text(all.words_a_minute, 3)},
                           {"pauses", percent_text(all.pauses)},
                           {"frames repeated", percent_text(all.repeated_frames)},
                           {"words repeated", percent_text(all.repeated_words)}}));
  Table csv{{"frame", "ms", "memory_mb"}};
  for (const auto layer : subject.facts.ttt_layers) csv[0].push_back("drift_layer_" + std::to_string(layer));
  for (const Look& look : talked.looks) {
    csv.push_back({std::to_string(look.frame), exact(ms[static_cast<std::size_t>(look.frame - 1)]),
                   exact(look.memory_mb)});
    for (const double d : look.drift) csv.back().push_back(exact(d));
  }
  page.file("stream.csv", csv_of(csv));
  page.write();
  return 0;
}
