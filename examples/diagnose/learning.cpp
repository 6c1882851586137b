// diagnose figure5, gates, causality: whether the TTT layers learn, whether it comes through, and whether
// they know the past alone.
#include "commands.hpp"

using namespace diagnose;

int figure5(Subject& subject, const std::vector<Recording>& recordings, const Options& options) {
  std::vector<Watched> all;
  for (const Recording& recording : recordings)
    all.push_back({recording.name(), subject.listen(recording.codes.codes, true).layers});
  std::vector<double> openings;
  for (const Gate& gate : subject.gates()) openings.push_back(mean_magnitude(gate.opening));
  write_figure5(options.output, title_of("Inner losses", subject.facts), all, options.window, openings);
  return 0;
}

namespace {

/// Below this a gate has collapsed: training is switching TTT off.
constexpr double collapsed = 0.001, nearly_closed = 0.01;

/// Channels by |tanh(alpha)|.
mttt::Series histogram_of(const Gate& gate) {
  constexpr std::size_t bins = 40;
  double largest = 1e-6;
  for (const double v : gate.opening) largest = std::max(largest, std::abs(v));
  mttt::Series bars{"channels", {}, std::vector<double>(bins, 0.0)};
  for (std::size_t i = 0; i < bins; ++i)
    bars.x.push_back(largest * (2 * (static_cast<double>(i) + 0.5) / bins - 1));
  for (const double v : gate.opening) {
    const auto at = static_cast<std::size_t>((v / largest + 1) / 2 * bins);
    bars.y[std::min(at, bins - 1)] += 1;
  }
  return bars;
}

}  // namespace

int gates(Subject& subject, const std::vector<Recording>& recordings, const Options& options) {
  const auto gates = subject.gates();
  Page page(options.output, "gates", title_of("Gates", subject.facts));
  if (gates.empty()) {
    page.verdict("This model has no gates.", false);
    page.write();
    return 0;
  }
  std::vector<Watched> all;
  for (const Recording& recording : recordings)
    all.push_back({recording.name(), subject.listen(recording.codes.codes, true).layers});
  const auto layers = diagnose_layers(all);

  Table table{{"layer", "mean |tanh(alpha)|", "least", "largest", "of what it is added to", "norm of TTT",
               "added to"}};
  mttt::Series by_layer{"mean |tanh(alpha)|", {}, {}}, shares{"measured share", {}, {}};
  std::string closed;
  for (std::size_t l = 0; l < gates.size(); ++l) {
    const Gate& gate = gates[l];
    const double mean = mean_magnitude(gate.opening);
    const auto [least, largest] = std::minmax_element(gate.opening.begin(), gate.opening.end());
    const double share = l < layers.size() && layers[l].base > 0 ? layers[l].gated / layers[l].base : NAN;
    by_layer.x.push_back(static_cast<double>(gate.layer)), by_layer.y.push_back(mean);
    shares.x.push_back(static_cast<double>(gate.layer)), shares.y.push_back(share);
    table.push_back({std::to_string(gate.layer), number_text(mean), number_text(*least),
                     number_text(*largest), std::isnan(share) ? "\u2013" : percent_text(share),
                     l < layers.size() ? number_text(layers[l].branch) : "\u2013",
                     l < layers.size() ? number_text(layers[l].base) : "\u2013"});
    if (mean < nearly_closed)
      closed += " Layer " + std::to_string(gate.layer) +
                (mean < collapsed ? " has collapsed to " : " is nearly closed, ") + percent_text(mean) + ".";
    else if (share < collapsed)
      closed += " Layer " + std::to_string(gate.layer) + " is open, but gives " + percent_text(share) +
                " of what it is added to.";
  }
  if (closed.empty()) {
    page.verdict("All " + std::to_string(gates.size()) + " gates are open.", true);
  } else {
    page.verdict(
        "Training is switching TTT off." + closed +
            " What these layers give is nothing that the model wants: look at figure5 first; then lower the "
            "gates' learning rate (ttt.alpha_lr_multiplier) or keep the gates fixed (ttt.gating: fixed), or "
            "start them higher.",
        false);
  }
  const std::vector<mttt::Series> lines = {by_layer, shares};
  page.section(page.chart(
      "gates_layers", lines,
      {.title = "Gates and what comes through", .x_label = "layer", .scale = mttt::Scale::log_if_wide}));
  std::string histograms;
  for (const Gate& gate : gates) {
    const auto bars = histogram_of(gate);
    histograms += page.chart("gates_layer_" + std::to_string(gate.layer), std::span(&bars, 1),
                             {.title = "Layer " + std::to_string(gate.layer) + ": channels by tanh(alpha)",
                              .x_label = "tanh(alpha)",
                              .ticks = 3});
  }
  page.small_section(histograms);
  page.section(table_html(table));
  page.paragraph(
      "The share is the mean norm of what comes through the gate over the mean norm of what it is added to: "
      "of "
      "attention's output, or of the layer's input where TTT comes before attention.");
  page.file("gates.csv", csv_of(table));
  page.write();
  return 0;
}

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
