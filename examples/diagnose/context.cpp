// diagnose context: the loss by position, and what the memory of TTT is worth there, in nats.
#include "commands.hpp"

using namespace diagnose;

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
