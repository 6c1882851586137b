// diagnose sweep: what the model says and how well it predicts, with its gates forced to values.
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
