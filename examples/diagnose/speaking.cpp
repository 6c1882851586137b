// diagnose sweep, context, stream: what the model says and predicts with its TTT layers, without them, and
// for long.
#include "commands.hpp"

using namespace diagnose;

namespace {

struct Outcome {
  std::string name;
  double temperature;
  double text_loss, audio_loss;
  Fluency fluency;
  std::optional<double> silence;
  std::string words;
};

Outcome try_out(Subject& subject, const std::vector<Recording>& recordings, const Options& options,
                const Condition& condition, double temperature, std::pair<double, double> losses) {
  Outcome outcome{condition.name, temperature, losses.first, losses.second, {}, {}, {}};
  std::vector<std::vector<std::int32_t>> talks;
  std::vector<std::int32_t> voice;
  std::vector<int> tokens;
  for (const auto& recording : recordings) {
    TalkOptions talk{.gen = {}, .frames = 0, .seed = options.seed};
    talk.gen.text.temperature = temperature;
    talk.gen.audio.temperature = options.audio_temperature;
    talks.push_back(subject.talk(recording.codes, talk).said);
  }
  const std::ptrdiff_t spoken = 1 + subject.facts.dep_q;
  for (const auto& said : talks) {
    for (auto frame = said.begin(); frame < said.end(); frame += spoken) {
      if (*frame == mttt::ungenerated_code) continue;
      if (subject.facts.is_word(*frame)) tokens.push_back(*frame);
      voice.insert(voice.end(), frame + 1, frame + spoken);
    }
  }
  outcome.fluency = fluency_of_all(talks, subject.facts, recordings[0].codes.frame_rate);
  outcome.silence = share_of_silence(voice, subject.facts.dep_q, options.codec);
  outcome.words = words_of(tokens, options.tokenizer);
  return outcome;
}

}  // namespace

int sweep(Subject& subject, const std::vector<Recording>& recordings, const Options& options) {
  std::vector<Condition> conditions;
  const bool gated = !subject.gates().empty();
  for (const double alpha : options.alphas)
    if (gated)
      conditions.push_back({.name = alpha == 0 ? "0: the base model" : number_text(alpha), .alpha = alpha});
  conditions.push_back({.name = gated ? "as learned" : "no gates"});

  std::vector<Outcome> outcomes;
  for (const auto& condition : conditions) {
    subject.become(condition);
    std::vector<double> text, audio;
    for (const auto& recording : recordings) {
      const auto heard = subject.listen(recording.codes.codes, false);
      text.insert(text.end(), heard.text_loss.begin(), heard.text_loss.end());
      audio.insert(audio.end(), heard.audio_loss.begin(), heard.audio_loss.end());
    }
    for (const double temperature : options.temperatures)
      outcomes.push_back(try_out(subject, recordings, options, condition, temperature,
                                 {mean_known(text), mean_known(audio)}));
  }
  subject.become({});

  Page page(options.output, "sweep", title_of("Gates forced", subject.facts));
  const auto total = [](const Outcome& o) {
    return (std::isfinite(o.text_loss) ? o.text_loss : 0) + o.audio_loss;
  };
  const Outcome& learned = outcomes.back();
  const Outcome& base = outcomes.front();
  const Outcome& best =
      *std::min_element(outcomes.begin(), outcomes.end(),
                        [&](const Outcome& a, const Outcome& b) { return total(a) < total(b); });
  const bool has_base = gated && !options.alphas.empty() && options.alphas[0] == 0;
  const double gain = total(base) - total(learned);
  std::string verdict =
      "The model as learned predicts at a loss of " + number_text(total(learned)) + " nats a frame";
  if (has_base)
    verdict += ", " + number_text(std::abs(gain), 3) + (gain >= 0 ? " better" : " worse") +
               " than with its gates at 0";
  verdict += ". The best of all tried is " + best.name + " (" + number_text(total(best)) + ").";
  const bool mute = learned.fluency.words_a_minute < 1 && (!has_base || base.fluency.words_a_minute >= 1);
  if (mute) verdict += " It hardly says a word.";
  if (learned.fluency.repeated_words > 0.5) verdict += " It repeats itself.";
  page.verdict(verdict, (!has_base || gain >= 0) && !mute && learned.fluency.repeated_words <= 0.5);

  std::vector<mttt::Series> lines = {{"text loss + audio loss", {}, {}}};
  for (const double a : options.alphas)
    for (const auto& o : outcomes)
      if (o.temperature == options.temperatures[0] && (o.name == number_text(a) || (a == 0 && &o == &base)) &&
          gated)
        lines[0].x.push_back(std::log10(std::max(a, 1e-6))), lines[0].y.push_back(total(o));
  if (!lines[0].x.empty()) {
    lines.push_back(
        {"as learned", {lines[0].x.front(), lines[0].x.back()}, {total(learned), total(learned)}});
    page.section(page.chart("sweep_loss", lines,
                            {.title = "Loss by forced alpha", .x_label = "log10(alpha); 0 stands at -6"}));
  }
  Table table{{"alpha", "text temp.", "text loss", "audio loss", "words/min", "pauses", "silence",
               "frames repeated", "words repeated"}};
  for (const auto& o : outcomes)
    table.push_back({o.name, number_text(o.temperature), number_text(o.text_loss), number_text(o.audio_loss),
                     number_text(o.fluency.words_a_minute, 3), percent_text(o.fluency.pauses),
                     o.silence ? percent_text(*o.silence) : "\u2013", percent_text(o.fluency.repeated_frames),
                     percent_text(o.fluency.repeated_words)});
  page.section(table_html(table));
  page.heading("What it says");
  for (const auto& o : outcomes)
    page.section("<h3>alpha " + escape_html(o.name) + ", temperature " + number_text(o.temperature) +
                 "</h3><p class=\"text\">" + (o.words.empty() ? "(nothing)" : escape_html(o.words)) + "</p>");
  page.paragraph(
      "Losses are teacher-forced. Then the model talks to the voice of the user in the same recordings. "
      "Pauses are frames "
      "without a token of text; silence are frames of its voice below \u221250 dB (with --codec); a frame is "
      "repeated if all "
      "of its codes are those of the frame before, a word if the three tokens that end there were said "
      "before.");
  Table csv = table;
  csv[0].push_back("words");
  for (std::size_t i = 0; i < outcomes.size(); ++i) csv[i + 1].push_back(outcomes[i].words);
  page.file("sweep.csv", csv_of(csv));
  page.write();
  return 0;
}

namespace {

/// Mean and half of its 95 % confidence interval, over recordings.
struct Estimate {
  double mean = NAN, around = NAN;
  std::size_t recordings = 0;
};

Estimate estimate(const std::vector<double>& values) {
  // 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom.
  constexpr double t[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                          2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086};
  std::vector<double> known;
  for (const double v : values)
    if (std::isfinite(v)) known.push_back(v);
  Estimate e{mean_known(known), NAN, known.size()};
  if (known.size() < 2) return e;
  double square = 0;
  for (const double v : known) square += (v - e.mean) * (v - e.mean);
  const auto n = static_cast<double>(known.size());
  const double quantile = known.size() - 2 < std::size(t) ? t[known.size() - 2] : 1.96;
  e.around = quantile * std::sqrt(square / (n - 1) / n);
  return e;
}

std::string text_of(const Estimate& e) {
  if (e.recordings == 0) return "\u2013";
  return number_text(e.mean, 4) + (std::isfinite(e.around) ? " \u00b1 " + number_text(e.around, 2) : "");
}

/// Windows of a recording: means of text loss + audio loss.
std::vector<double> windows_of(const mttt::Listened& heard, std::size_t window) {
  std::vector<double> total;
  for (std::size_t t = 0; t < heard.audio_loss.size(); ++t)
    total.push_back((std::isfinite(heard.text_loss[t]) ? heard.text_loss[t] : 0) + heard.audio_loss[t]);
  return windowed("", total, window).y;
}

}  // namespace

int context(Subject& subject, const std::vector<Recording>& recordings, const Options& options) {
  std::size_t longest = 0;
  for (const auto& r : recordings) longest = std::max(longest, static_cast<std::size_t>(r.codes.frames));
  const std::size_t window =
      options.window > 0 ? static_cast<std::size_t>(options.window) : std::max<std::size_t>(8, longest / 12);
  std::vector<Condition> conditions = {{.name = "as trained"}};
  if (!subject.facts.ttt_layers.empty()) {
    conditions.push_back({.name = "TTT frozen at W_0", .frozen = true});
    conditions.push_back({.name = "TTT reset every " + std::to_string(options.reset_every),
                          .reset_every = options.reset_every});
    conditions.push_back({.name = "gate 0", .alpha = 0});
  }
  const std::size_t places = (longest + window - 1) / window;
  // Of each condition and window, a number a recording.
  std::vector<std::vector<std::vector<double>>> losses(conditions.size(),
                                                       std::vector<std::vector<double>>(places));
  std::vector<std::vector<double>> whole(conditions.size());
  for (std::size_t c = 0; c < conditions.size(); ++c) {
    subject.become(conditions[c]);
    for (const auto& recording : recordings) {
      const auto heard = subject.listen(recording.codes.codes, false);
      const auto means = windows_of(heard, window);
      for (std::size_t w = 0; w < places; ++w) losses[c][w].push_back(w < means.size() ? means[w] : NAN);
      const double text = mean_known(heard.text_loss);
      whole[c].push_back((std::isfinite(text) ? text : 0) + mean_known(heard.audio_loss));
    }
  }
  subject.become({});

  std::vector<mttt::Series> curves, gains;
  Table table{{"frames"}}, worth{{"frames"}},
      csv{{"condition", "from_frame", "to_frame", "recordings", "loss", "confidence_95", "gain_over_it",
           "gain_confidence_95"}};
  std::vector<std::vector<std::string>> rows(places), gain_rows(places);
  for (std::size_t w = 0; w < places; ++w) {
    const std::string span = number_text(static_cast<double>(w * window), 9) + " to " +
                             number_text(static_cast<double>(std::min((w + 1) * window, longest)), 9);
    rows[w] = {span}, gain_rows[w] = {span};
  }
  for (std::size_t c = 0; c < conditions.size(); ++c) {
    table[0].push_back(conditions[c].name);
    if (c > 0) worth[0].push_back("over " + conditions[c].name);
    mttt::Series curve{conditions[c].name, {}, {}}, gain{"over " + conditions[c].name, {}, {}};
    for (std::size_t w = 0; w < places; ++w) {
      std::vector<double> paired;  // what a recording loses without
      for (std::size_t r = 0; r < recordings.size(); ++r) paired.push_back(losses[c][w][r] - losses[0][w][r]);
      const Estimate e = estimate(losses[c][w]), g = estimate(paired);
      const double middle = (static_cast<double>(w) + 0.5) * static_cast<double>(window);
      curve.x.push_back(middle), curve.y.push_back(e.mean);
      gain.x.push_back(middle), gain.y.push_back(g.mean);
      rows[w].push_back(text_of(e));
      if (c > 0) gain_rows[w].push_back(text_of(g));
      csv.push_back({conditions[c].name, std::to_string(w * window),
                     std::to_string(std::min((w + 1) * window, longest)), std::to_string(e.recordings),
                     exact(e.mean), exact(e.around), exact(g.mean), exact(g.around)});
    }
    curves.push_back(std::move(curve));
    if (c > 0) gains.push_back(std::move(gain));
  }
  table.insert(table.end(), rows.begin(), rows.end());
  worth.insert(worth.end(), gain_rows.begin(), gain_rows.end());

  Page page(options.output, "context", title_of("Loss by position", subject.facts));
  if (conditions.size() == 1) {
    page.verdict("This model has no TTT layers: its loss by position is all there is to see.", false);
  } else {
    std::vector<double> frozen, closed;
    for (std::size_t r = 0; r < recordings.size(); ++r)
      frozen.push_back(whole[1][r] - whole[0][r]), closed.push_back(whole[3][r] - whole[0][r]);
    const Estimate memory = estimate(frozen), layers = estimate(closed);
    const bool sure = memory.recordings >= 2 && memory.mean - memory.around > 0;
    page.verdict("What TTT learns while it listens is worth " + text_of(memory) + " nats a frame" +
                     (memory.recordings < 2 ? " (one recording: no confidence interval)"
                      : sure                ? ""
                                            : ", which is not more than nothing with 95 % confidence") +
                     "; the TTT layers with all that they have learned in training " + text_of(layers) + ".",
                 memory.recordings < 2 ? memory.mean > 0 : sure);
  }
  const std::string means = ", means of " + std::to_string(window) + " frames";
  page.section(page.chart("context_loss", curves, {.title = "Loss by position" + means, .x_label = "frame"}));
  if (!gains.empty())
    page.section(page.chart("context_gain", gains,
                            {.title = "What the model as trained gains" + means, .x_label = "frame"}));
  page.heading("Loss, nats a frame");
  page.section(table_html(table));
  if (!gains.empty()) {
    page.heading("Gain of the model as trained, nats a frame");
    page.section(table_html(worth));
  }
  page.paragraph(
      "The loss of a frame is that of its text plus the mean over its codebooks, teacher-forced, as a "
      "stream. Numbers "
      "after \u00b1 are 95 % confidence intervals over recordings; gains are of the same recording with and "
      "without, so that what makes recordings differ does not count.");
  page.file("context.csv", csv_of(csv));
  page.write();
  return 0;
}

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
