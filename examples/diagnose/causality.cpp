// diagnose causality: no prediction depends on what comes later, on this checkpoint and these data.
#include "commands.hpp"

using namespace diagnose;

namespace {

std::string stream_name(const Facts& facts, mttt::Index k) {
  if (k == 0) return "text";
  return k <= facts.dep_q ? "codebook " + std::to_string(k) + " of the model"
                          : "codebook " + std::to_string(k - facts.dep_q) + " of the user";
}

void tell(Page& page, const Facts& facts, const std::string& how, const mttt::CausalityReport& report) {
  Table table{{how, ""},
              {"times that later codes were changed", std::to_string(report.trials)},
              {"of these, something later changed", std::to_string(report.live)},
              {"numbers that had to keep their bits", number_text(report.compared, 9)},
              {"times that one did not", std::to_string(report.leaks.size())}};
  for (const auto& leak : report.leaks)
    table.push_back({"changed " + stream_name(facts, leak.changed_stream) + " at frame " +
                         std::to_string(leak.changed_frame),
                     "moved " + stream_name(facts, leak.stream) + " at frame " + std::to_string(leak.frame)});
  page.section(table_html(table));
}

}  // namespace

int causality(Subject& subject, const std::vector<Recording>& recordings, const Options& options) {
  const Facts& facts = subject.facts;
  const auto& recording = recordings[0].codes;
  const mttt::Index frames = std::min(options.frames, recording.frames);
  std::vector<std::int32_t> codes;
  for (mttt::Index k = 0; k < recording.streams; ++k) {
    const auto stream = recording.stream(k);
    codes.insert(codes.end(), stream.begin(), stream.begin() + frames);
  }
  const auto offline = [&](const std::vector<std::int32_t>& c) { return subject.predict_offline(c); };
  const auto streamed = [&](const std::vector<std::int32_t>& c) { return subject.predict_streamed(c); };
  const auto all_at_once = mttt::check_causality(offline, codes, facts.order, options.trials);
  const auto frame_by_frame =
      mttt::check_causality(streamed, codes, facts.order, std::max<mttt::Index>(2, options.trials / 6));
  const auto agreement = mttt::agreement_of(offline(codes), streamed(codes), facts.order);
  const double allowed = (facts.dtype == "f32" ? 1e-3 : 5e-2) * std::max(1.0, agreement.size);
  const bool agrees = agreement.largest <= allowed;

  Page page(options.output, "causality", title_of("Causality", facts));
  const bool good = all_at_once.causal() && frame_by_frame.causal() && agrees;
  std::string verdict;
  if (good)
    verdict = "Causal: " + number_text(all_at_once.compared + frame_by_frame.compared, 9) +
              " numbers kept their bits while later codes were changed " +
              std::to_string(all_at_once.trials + frame_by_frame.trials) +
              " times, and a stream predicts what a pass over all frames does, to " +
              number_text(agreement.largest, 2) + ".";
  for (const auto* report : {&all_at_once, &frame_by_frame}) {
    const std::string how = report == &all_at_once ? "A pass over all frames" : "The stream";
    if (!report->leaks.empty()) {
      const auto& leak = report->leaks.front();
      verdict += how + " is not causal: " + stream_name(facts, leak.stream) + " at frame " +
                 std::to_string(leak.frame) + " depends on " + stream_name(facts, leak.changed_stream) +
                 " at frame " + std::to_string(leak.changed_frame) + ". ";
    } else if (report->live == 0) {
      verdict += how + " does not heed its input at all: nothing changed after any change. ";
    }
  }
  if (!agrees)
    verdict += "A stream computes another function than training did: predictions differ by up to " +
               number_text(agreement.largest, 3) + " (" + stream_name(facts, agreement.worst_stream) +
               ", frame " + std::to_string(agreement.worst_frame) + "), allowed is " +
               number_text(allowed, 2) + ".";
  page.verdict(verdict, good);
  tell(page, facts, "A pass over all frames at once, as in training", all_at_once);
  tell(page, facts, "A stream, frame by frame, as in a conversation", frame_by_frame);
  page.section(table_html({{"Stream against pass", ""},
                           {"frames", std::to_string(frames)},
                           {"largest difference of a logit", number_text(agreement.largest, 3)},
                           {"allowed", number_text(allowed, 3)},
                           {"largest logit", number_text(agreement.size, 3)},
                           {"likeliest code the same", percent_text(agreement.same_choice)}}));
  page.paragraph(
      "Half of the times one code is changed, else all codes from a place on. In the order in which the "
      "model reads and "
      "says, with its delays, everything up to that place must stay the same to the bit, and something after "
      "it must not.");
  page.write();
  return good ? 0 : 1;
}
