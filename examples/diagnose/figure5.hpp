// Figure 5 of the TTT paper for any model: the inner losses of its TTT layers, judged, drawn and tabulated.
// Takes what StreamProbe or inner_curves (lm/probes.hpp) saw, so that other programs may write it of models
// of their own.
#pragma once

#include "mttt/lm/probes.hpp"
#include "mttt/ttt/verdict.hpp"
#include "page.hpp"

namespace diagnose {

/// What was seen while one recording was heard.
struct Watched {
  std::string name;
  std::vector<LayerCurves> layers;
};

struct LayerDiagnosis {
  Index layer;
  InnerReport report;
  double base = 0, branch = 0, gated = 0, drift = 0;  // mean norms; drift: largest
  LayerCurves mean = {};                              // by position
};

/// Means by position of one curve, as far as at least half of the recordings reach.
template <class Member>
std::vector<double> mean_by_position(const std::vector<Watched>& all, std::size_t layer, Member member) {
  std::vector<double> sum, count;
  for (const Watched& one : all) {
    const std::vector<double>& curve = one.layers[layer].*member;
    if (curve.size() > sum.size()) sum.resize(curve.size()), count.resize(curve.size());
    for (std::size_t t = 0; t < curve.size(); ++t) sum[t] += curve[t], count[t] += 1;
  }
  while (!sum.empty() && 2 * count.back() < static_cast<double>(all.size())) sum.pop_back(), count.pop_back();
  for (std::size_t t = 0; t < sum.size(); ++t) sum[t] /= count[t];
  return sum;
}

inline std::vector<LayerDiagnosis> diagnose_layers(const std::vector<Watched>& all) {
  std::vector<LayerDiagnosis> found;
  for (std::size_t l = 0; !all.empty() && l < all[0].layers.size(); ++l) {
    std::vector<InnerLossCurves> curves;
    for (const Watched& one : all)
      curves.push_back({one.layers[l].at_start, one.layers[l].before, one.layers[l].after});
    LayerDiagnosis d{all[0].layers[l].layer, inner_report(curves)};
    for (const auto member :
         {&LayerCurves::at_start, &LayerCurves::before, &LayerCurves::after, &LayerCurves::drift,
          &LayerCurves::base, &LayerCurves::branch, &LayerCurves::gated})
      d.mean.*member = mean_by_position(all, l, member);
    d.mean.layer = d.layer;
    d.base = mttt::detail::mean_of(d.mean.base);
    d.branch = mttt::detail::mean_of(d.mean.branch);
    d.gated = mttt::detail::mean_of(d.mean.gated);
    for (const double drift : d.mean.drift) d.drift = std::max(d.drift, drift);
    found.push_back(std::move(d));
  }
  return found;
}

inline std::string statistics_line(const char* name, const CurveStatistics& s) {
  char text[160];
  std::snprintf(text, sizeof text, "  %-9s mean %-9.5g deviation %-9.4g least %-9.4g largest %.4g\n", name,
                s.mean, s.deviation, s.least, s.largest);
  return text;
}

/// A layer in words, for a terminal.
inline std::string layer_text(const LayerDiagnosis& d, std::size_t recordings) {
  const InnerReport& r = d.report;
  char text[600];
  std::string out = "Layer " + std::to_string(d.layer) + ": " + name_of(r.verdict) + "\n";
  std::snprintf(text, sizeof text, "  %zu frames of %zu recording%s\n", r.frames, recordings,
                recordings == 1 ? "" : "s");
  out += text;
  out += statistics_line("l(W_0)", r.at_start) + statistics_line("l(W_t-1)", r.before) +
         statistics_line("l(W_t)", r.after);
  std::snprintf(
      text, sizeof text,
      "  improvement per step %.5g, benefit of memory %.5g\n"
      "  order violated in %.1f %%: the step made it worse in %.1f %% of frames, memory in %.1f %%\n"
      "  trend of l(W_t-1) %+.1f %% from the first to the last quarter, of l(W_0) %+.1f %%\n"
      "  drift |W_t - W_0| / |W_0| up to %.4g\n",
      r.improvement, r.benefit, 100 * r.violations, 100 * r.worse_after, 100 * r.worse_before, 100 * r.trend,
      100 * r.start_trend, d.drift);
  out += text;
  if (!d.mean.base.empty()) {
    std::snprintf(text, sizeof text,
                  "  mean norms: %.4g before TTT is added, TTT %.4g, TTT through the gate %.4g (%.2f %%)\n",
                  d.base, d.branch, d.gated, 100 * d.gated / std::max(d.base, 1e-30));
    out += text;
  }
  return out + "  " + advice_for(r.verdict) + "\n";
}

inline Table figure5_csv(const std::vector<Watched>& all, const std::vector<double>& openings = {}) {
  Table table{{"recording", "layer", "frame", "l_w0", "l_prev", "l_after", "drift", "base_norm", "ttt_norm",
               "gated_norm", "mean_abs_tanh_alpha"}};
  for (const Watched& one : all) {
    for (std::size_t l = 0; l < one.layers.size(); ++l) {
      const LayerCurves& c = one.layers[l];
      const auto at = [](const std::vector<double>& curve, std::size_t t) {
        return t < curve.size() ? exact(curve[t]) : std::string();
      };
      for (std::size_t t = 0; t < c.before.size(); ++t)
        table.push_back({one.name, std::to_string(c.layer), std::to_string(t), at(c.at_start, t),
                         at(c.before, t), at(c.after, t), at(c.drift, t), at(c.base, t), at(c.branch, t),
                         at(c.gated, t), l < openings.size() ? exact(openings[l]) : ""});
    }
  }
  return table;
}

/// Page, plots, text and CSV in `folder`. `openings`: mean |tanh(alpha)| of each layer, where there are
/// gates. Whether all layers learn.
inline bool write_figure5(const std::filesystem::path& folder, const std::string& title,
                          const std::vector<Watched>& all, Index window,
                          const std::vector<double>& openings = {}) {
  const auto layers = diagnose_layers(all);
  Page page(folder, "figure5", title);
  std::string words, sick;
  std::size_t ill = 0;
  for (const auto& d : layers) {
    words += (words.empty() ? "" : "\n") + layer_text(d, all.size());
    if (!is_sick(d.report.verdict)) continue;
    ++ill;
    sick += " Layer " + std::to_string(d.layer) + ": " + name_of(d.report.verdict) + ".";
  }
  if (layers.empty()) {
    page.verdict("This model has no TTT layers: there is no inner loop to look at.", false);
  } else if (ill == 0) {
    page.verdict("None of the " + std::to_string(layers.size()) + " TTT layers is sick.", true);
  } else {
    page.verdict(std::to_string(ill) + " of " + std::to_string(layers.size()) +
                     " TTT layers: something is wrong." + sick,
                 false);
  }
  Table table{{"layer", "verdict", "l(W_0)", "l(W_t-1)", "l(W_t)", "improvement", "benefit", "violations",
               "trend", "gate", "share", "drift"}};
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto& d = layers[l];
    const InnerReport& r = d.report;
    const std::size_t span = window_for(d.mean.before.size(), window);
    const std::string name = "Layer " + std::to_string(d.layer),
                      stem = "figure5_layer_" + std::to_string(d.layer);
    const std::vector<Series> losses = {windowed("l(W_0; x_t)", d.mean.at_start, span),
                                        windowed("l(W_t-1; x_t)", d.mean.before, span),
                                        windowed("l(W_t; x_t)", d.mean.after, span)};
    std::vector<double> step, total(1, 0.0);
    for (std::size_t t = 0; t < d.mean.before.size(); ++t) {
      step.push_back(d.mean.before[t] - d.mean.after[t]);
      total.push_back(total.back() + d.mean.at_start[t] - d.mean.before[t]);
    }
    Series sum{"sum of l(W_0) - l(W_t-1)", {}, {}};
    for (std::size_t t = 0; t < total.size(); ++t)
      sum.x.push_back(static_cast<double>(t)), sum.y.push_back(total[t]);
    const std::string means = span > 1 ? ", means of " + std::to_string(span) + " frames" : "";
    page.section(
        page.chart(stem + "_losses", losses, {.title = name + ": inner losses" + means, .x_label = "frame"}) +
        "<p>" + escape_html(name_of(r.verdict)) + ". " + escape_html(advice_for(r.verdict)) + "</p>");
    const std::vector<Series> improvement = {windowed("l(W_t-1) - l(W_t)", step, span)};
    std::string more =
        page.chart(stem + "_improvement", improvement,
                   {.title = name + ": improvement per step", .x_label = "frame", .ticks = 3}) +
        page.chart(stem + "_benefit", std::span(&sum, 1),
                   {.title = name + ": cumulative benefit of memory", .x_label = "frame", .ticks = 3});
    const std::vector<Series> drift = {windowed("|W_t - W_0| / |W_0|", d.mean.drift, span)};
    more += page.chart(stem + "_drift", drift, {.title = name + ": drift", .x_label = "frame", .ticks = 3});
    if (!d.mean.base.empty()) {
      const std::vector<Series> norms = {windowed("added to", d.mean.base, span),
                                         windowed("TTT", d.mean.branch, span),
                                         windowed("TTT through the gate", d.mean.gated, span)};
      more += page.chart(
          stem + "_norms", norms,
          {.title = name + ": norms", .x_label = "frame", .scale = Scale::log_if_wide, .ticks = 3});
    }
    page.small_section(more);
    table.push_back({std::to_string(d.layer), name_of(r.verdict), number_text(r.at_start.mean),
                     number_text(r.before.mean), number_text(r.after.mean), number_text(r.improvement),
                     number_text(r.benefit), percent_text(r.violations), percent_text(r.trend),
                     l < openings.size() ? number_text(openings[l]) : "\u2013",
                     d.base > 0 ? percent_text(d.gated / d.base) : "\u2013", number_text(d.drift)});
  }
  if (!layers.empty()) {
    page.heading("All layers");
    page.section(table_html(table));
    page.heading("In words");
    page.text(words);
    page.paragraph(
        "l(W; x_t) is the loss that the layer descends for frame t, a channel of a head, mean over its "
        "heads. W_0 is the "
        "learned start, W_t-1 what the stream has taught up to the frame before, W_t what the frame itself "
        "taught on "
        "top. Where memory works, l(W_0) > l(W_t-1) > l(W_t).");
  }
  page.file("figure5.txt", words);
  page.file("figure5.csv", csv_of(figure5_csv(all, openings)));
  std::printf("%s", words.c_str());
  page.write();
  return ill == 0;
}

}  // namespace diagnose
