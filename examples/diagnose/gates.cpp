// diagnose gates: how far the gates are open, and what comes through.
#include "commands.hpp"

using namespace diagnose;

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
    all.push_back({recording.name, subject.listen(recording.codes.codes, true).layers});
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
