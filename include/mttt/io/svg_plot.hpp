// Line charts, waveforms and spectrograms as inline SVG that fits any width: lines stretch, letters do not.
//
// The outer <svg> is the plotting area, sized by the style sheet of the page (plot_style) and placed in per
// cent; inside it a second one of 1000 x 1000 units holds the lines. Colours are the page's variables --s0
// to --s5.
//
// Shapes:  series x (n), y (n); NaN in y is a gap.
// Units:   those of the data.
// Errors:  none: empty series, single points, constants, NaN and infinity are drawn as far as there is
//          something.
// Not supported: time axes, stacked or filled charts, more than six colours.
// Source:  SVG 2 (vector-effect, preserveAspectRatio).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mttt/io/html.hpp"
#include "mttt/io/png.hpp"
#include "mttt/io/spectrogram.hpp"

namespace mttt {

struct Series {
  std::string name;
  std::vector<double> x, y;  // (n)
};

enum class Scale { linear, log_if_wide };

struct ChartOptions {
  std::string title, x_label;
  Scale scale = Scale::linear;
  std::size_t ticks = 5;  // on the y axis, about
  bool smooth = false;    // a thick line of means over the faint one of the data
  std::size_t most_points = 1500;
};

/// The lines of a style sheet that the charts need.
inline constexpr std::string_view plot_style = R"css(
.plot{display:block;overflow:visible;height:var(--height,260px);margin:14px 14px 42px var(--left,56px);
width:calc(100% - var(--left,56px) - 14px)}
.plot text{font-size:12px;fill:var(--muted);font-variant-numeric:tabular-nums}
.plot .grid{stroke:var(--grid);stroke-width:1}
.plot .axis{stroke:var(--axis);stroke-width:1}
.plot path{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round;
vector-effect:non-scaling-stroke}
.plot path.raw{stroke-width:1;opacity:.35}
.plot path.wave{stroke-width:1;fill:var(--s0);stroke:var(--s0)}
.chart{margin:0;min-width:0}
.chart figcaption{display:flex;flex-wrap:wrap;gap:2px 16px;align-items:baseline}
.chart figcaption strong{font-weight:600}
.key::before{content:"";display:inline-block;width:16px;height:3px;border-radius:2px;background:var(--c);
margin-right:6px;vertical-align:middle}
.key,.muted{color:var(--muted)}
.scale{display:inline-block;width:90px;height:8px;border-radius:2px;margin:0 6px;vertical-align:middle}
)css";

namespace detail {

/// Where values lie on an axis, and which of them get a label.
struct Axis {
  double low, high;
  bool logarithmic = false;
  std::vector<double> ticks = {};

  /// 0 at `low`, 1 at `high`.
  double place(double value) const {
    return logarithmic ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
  }
};

/// 1, 2 or 5 times a power of ten, the one that cuts `range` into nearest to `count` steps.
inline double nice_step(double range, std::size_t count) {
  const double rough = range / static_cast<double>(count), ten = std::pow(10, std::floor(std::log10(rough)));
  const double part = rough / ten;  // 1 to 10; the borders are geometric means
  return ten * (part < 1.414 ? 1 : part < 3.162 ? 2 : part < 7.071 ? 5 : 10);
}

/// An axis that begins and ends where the data do (`exact`), or at the ticks around them.
inline Axis linear_axis(double low, double high, std::size_t count, bool exact) {
  if (!(low <= high)) low = 0, high = 1;  // no data
  if (high - low <= 1e-9 * std::max(std::abs(low), std::abs(high))) {
    const double around = low == 0 ? 1 : std::abs(low) / (exact ? 1 : 10);
    low -= around;
    high += around;
  }
  if (!exact && low > 0 && low < 0.35 * high) low = 0;
  const double step = nice_step(high - low, count);
  const double first = exact ? std::ceil(low / step - 1e-6) : std::floor(low / step + 1e-6);
  const double last = exact ? std::floor(high / step + 1e-6) : std::ceil(high / step - 1e-6);
  Axis axis{exact ? low : first * step, exact ? high : last * step};
  for (double k = first; k <= last; ++k) axis.ticks.push_back(k * step);
  return axis;
}

/// Ticks at 1, 2 and 5 times the powers of ten, at fewer of them over many powers.
inline Axis log_axis(double low, double high) {
  Axis axis{low / 1.15, high * 1.15, true};
  const double decades = std::log10(axis.high / axis.low);
  const double every = std::ceil(decades / 6);
  for (double power = std::floor(std::log10(axis.low)); power <= std::log10(axis.high); ++power) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const bool wanted = factor == 1 ? std::fmod(std::abs(power), every) == 0 : decades < 2.2;
      const double tick = factor * std::pow(10, power);
      if (wanted && tick >= axis.low && tick <= axis.high) axis.ticks.push_back(tick);
    }
  }
  return axis;
}

/// Tick labels: short, thousands as k.
inline std::string tick_text(double value) {
  const double size = std::abs(value);
  return size >= 1e4 && size < 1e7 ? number_text(value / 1000, 5) + "k" : number_text(value, 3);
}

inline std::string percent(double part) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f%%", 100 * part);
  return text;
}

/// The opening of a plot: area, grid and labels. The caller adds marks and closes the <svg>.
struct Frame {
  std::string aria, x_label;
  std::vector<std::pair<double, std::string>> x_ticks, y_ticks;  // place 0..1, text
  int height = 260;                                              // px
  std::size_t letters = 1;  // room for labels of so many letters, so that charts under each other line up

  std::string open() const {
    std::size_t longest = letters;
    for (const auto& [place, text] : y_ticks) {
      std::size_t length = 0;
      for (const char c : text) length += (c & 0xc0) != 0x80;
      longest = std::max(longest, length);
    }
    std::string out = "<svg class=\"plot\" role=\"img\" aria-label=\"" + escape_html(aria) +
                      "\" style=\"--height:" + std::to_string(height) +
                      "px;--left:" + std::to_string(16 + 7 * longest) + "px\">";
    for (const auto& [place, text] : y_ticks) {
      const std::string y = percent(1 - place);
      out += "<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"" + y + "\" y2=\"" + y +
             "\"/><text x=\"-8\" y=\"" + y + "\" dy=\".35em\" text-anchor=\"end\">" + escape_html(text) +
             "</text>";
    }
    out += "<line class=\"axis\" x1=\"0\" x2=\"100%\" y1=\"100%\" y2=\"100%\"/>";
    for (const auto& [place, text] : x_ticks) {
      const std::string x = percent(place);
      out += "<svg x=\"" + x +
             "\" y=\"100%\" overflow=\"visible\"><line class=\"axis\" x1=\"0\" x2=\"0\" y1=\"0\" " +
             "y2=\"4\"/><text x=\"0\" y=\"18\" text-anchor=\"middle\">" + escape_html(text) + "</text></svg>";
    }
    return out +
           "<svg x=\"50%\" y=\"100%\" overflow=\"visible\"><text x=\"0\" y=\"35\" text-anchor=\"middle\">" +
           escape_html(x_label) + "</text></svg>";
  }
};

inline std::vector<std::pair<double, std::string>> labelled(const Axis& axis) {
  std::vector<std::pair<double, std::string>> out;
  for (const double tick : axis.ticks) out.emplace_back(axis.place(tick), tick_text(tick));
  return out;
}

/// At most about `most` of the indices of `y`: both ends, and of each stretch the lowest and highest value.
inline std::vector<std::size_t> thinned(std::span<const double> y, std::size_t most) {
  std::vector<std::size_t> kept;
  const std::size_t stretch = y.size() <= most ? 1 : 2 * ((y.size() + most - 1) / most);
  for (std::size_t from = 0; from < y.size(); from += stretch) {
    const std::size_t to = std::min(from + stretch, y.size());
    std::size_t low = from, high = from;
    for (std::size_t i = from; i < to; ++i) {
      if (!(y[i] >= y[low])) low = i;
      if (!(y[i] <= y[high])) high = i;
    }
    kept.push_back(std::min(low, high));
    if (low != high) kept.push_back(std::max(low, high));
  }
  if (!y.empty() && kept.front() != 0) kept.insert(kept.begin(), 0);
  if (!y.empty() && kept.back() + 1 != y.size()) kept.push_back(y.size() - 1);
  return kept;
}

/// Path data in a square of 1000 units; what has no place is a gap.
inline std::string path_data(const Series& line, const Axis& x, const Axis& y, std::size_t most_points) {
  std::string out;
  bool pen_up = true;
  for (const std::size_t i : thinned(line.y, most_points)) {
    const double right = x.place(line.x[i]), up = y.place(line.y[i]);
    if (!std::isfinite(right) || !std::isfinite(up)) {
      pen_up = true;
      continue;
    }
    char text[64];
    std::snprintf(text, sizeof text, "%c%.1f %.1f", pen_up ? 'M' : 'L', 1000 * right, 1000 * (1 - up));
    out += text;
    pen_up = false;
  }
  return out;
}

inline constexpr std::string_view stretched =
    "<svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" width=\"100%\" height=\"100%\" "
    "overflow=\"visible\">";

}  // namespace detail

/// Means of the neighbours to both sides, weighted by exp(-distance / reach); NaN is passed over and stays.
/// Looking both ways keeps a falling curve where it is; a mean of the past alone would lag behind it.
inline std::vector<double> smoothed(std::span<const double> y, double reach) {
  const double keep = std::exp(-1 / reach);
  std::vector<double> sum(y.size()), weight(y.size()),
      out(y.size(), std::numeric_limits<double>::quiet_NaN());
  const auto sweep = [&](auto index_of) {  // adds what was passed before, once from each side
    double passed = 0, passed_weight = 0;
    for (std::size_t k = 0; k < y.size(); ++k) {
      const std::size_t i = index_of(k);
      sum[i] += passed;
      weight[i] += passed_weight;
      const bool there = std::isfinite(y[i]);
      passed = keep * (passed + (there ? y[i] : 0));
      passed_weight = keep * (passed_weight + (there ? 1 : 0));
    }
  };
  sweep([](std::size_t k) { return k; });
  sweep([&](std::size_t k) { return y.size() - 1 - k; });
  for (std::size_t i = 0; i < y.size(); ++i)
    if (std::isfinite(y[i])) out[i] = (sum[i] + y[i]) / (weight[i] + 1);
  return out;
}

namespace detail {

struct ChartAxes {
  Axis x, y;
};

/// Axes that hold all series.
inline ChartAxes axes_of(std::span<const Series> lines, const ChartOptions& options) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  double left = infinity, right = -infinity, low = infinity, high = -infinity;
  for (const Series& line : lines) {
    for (std::size_t i = 0; i < line.y.size(); ++i) {
      if (!std::isfinite(line.y[i]) || !std::isfinite(line.x[i])) continue;
      left = std::min(left, line.x[i]), right = std::max(right, line.x[i]);
      low = std::min(low, line.y[i]), high = std::max(high, line.y[i]);
    }
  }
  if (left > 0 && left < 0.25 * right) left = 0;
  const bool logarithmic =
      options.scale == Scale::log_if_wide && low > 0 && high > 20 * low && high < infinity;
  return {linear_axis(left, right, 5, true),
          logarithmic ? log_axis(low, high) : linear_axis(low, high, options.ticks, false)};
}

/// How far the means of a smoothed curve reach.
inline double smoothing_reach(std::size_t points) { return std::min(static_cast<double>(points) / 60, 50.0); }

}  // namespace detail

/// A figure with all series in one chart, its legend with the last value of each.
inline std::string line_chart(std::span<const Series> lines, const ChartOptions& options) {
  const auto [x, y] = detail::axes_of(lines, options);

  std::string legend, paths, dots;
  for (std::size_t s = 0; s < lines.size(); ++s) {
    const Series& line = lines[s];
    const std::string colour = "var(--s" + std::to_string(s % 6) + ")";
    std::size_t last = line.y.size();
    while (last > 0 && !std::isfinite(line.y[last - 1])) --last;
    legend += "<span class=\"key\" style=\"--c:" + colour + "\">" + escape_html(line.name) + " " +
              (last == 0 ? "(no values)" : number_text(line.y[last - 1])) + "</span>";
    if (last == 0) continue;

    const double reach = detail::smoothing_reach(line.y.size());
    const bool two = options.smooth && line.y.size() >= 30;
    const auto add = [&, &x = x, &y = y](const Series& drawn, std::string_view kind) {  // for clang++ 14
      paths.append("<path class=\"").append(kind).append("\" style=\"stroke:" + colour + "\" d=\"");
      paths += detail::path_data(drawn, x, y, options.most_points) + "\"/>";
    };
    add(line, two ? "raw" : "line");
    const Series mean{line.name, line.x, two ? smoothed(line.y, reach) : line.y};
    if (two) add(mean, "line");
    dots += "<circle r=\"3.5\" style=\"fill:" + colour + "\" cx=\"" +
            detail::percent(x.place(line.x[last - 1])) + "\" cy=\"" +
            detail::percent(1 - y.place(mean.y[last - 1])) + "\"/>";
  }
  const detail::Frame frame{options.title, options.x_label, detail::labelled(x), detail::labelled(y),
                            options.ticks > 3 ? 280 : 130};
  return "<figure class=\"chart\"><figcaption><strong>" + escape_html(options.title) +
         (y.logarithmic ? ", log scale" : "") + "</strong>" + legend + "</figcaption>" + frame.open() +
         std::string(detail::stretched) + paths + "</svg>" + dots + "</svg></figure>";
}

/// A figure of the loudest samples up and down, over time.
inline std::string waveform_chart(std::span<const float> samples, int sample_rate,
                                  std::size_t most_columns = 900) {
  const std::size_t columns = std::clamp<std::size_t>(samples.size(), 1, most_columns);
  float peak = 0;
  for (const float sample : samples) peak = std::max(peak, std::abs(sample));
  const double unit = peak > 0 ? peak : 1;

  std::string upper, lower;
  for (std::size_t column = 0; column < columns && !samples.empty(); ++column) {
    const std::size_t from = column * samples.size() / columns, to = (column + 1) * samples.size() / columns;
    const auto [low, high] = std::minmax_element(samples.begin() + static_cast<std::ptrdiff_t>(from),
                                                 samples.begin() + static_cast<std::ptrdiff_t>(to));
    const auto point = [&](char pen, float value) {
      char text[64];
      std::snprintf(text, sizeof text, "%c%.1f %.1f", pen,
                    1000 * (static_cast<double>(column) + 0.5) / static_cast<double>(columns),
                    500 - 500 * value / unit);
      return std::string(text);
    };
    upper += point(column == 0 ? 'M' : 'L', *high);
    lower.insert(0, point('L', *low));
  }
  const double seconds = static_cast<double>(samples.size()) / sample_rate;
  const detail::Axis x = detail::linear_axis(0, seconds, 5, true);
  const detail::Frame frame{"Waveform",
                            "seconds",
                            detail::labelled(x),
                            {{0, number_text(-unit, 2)}, {0.5, "0"}, {1, number_text(unit, 2)}},
                            110,
                            6};
  return "<figure class=\"chart\"><figcaption><strong>Waveform</strong></figcaption>" + frame.open() +
         std::string(detail::stretched) + "<path class=\"wave\" d=\"" + upper + lower +
         "Z\"/></svg></svg></figure>";
}

/// A figure of the mel spectrogram: the 70 dB below its peak, from dark to bright.
inline std::string spectrogram_chart(const Spectrogram& sound) {
  constexpr Colour through[] = {{13, 12, 34},  {58, 26, 110},  {140, 41, 118},
                                {217, 80, 80}, {249, 160, 63}, {252, 240, 180}};
  constexpr double shown = 70;  // dB
  const double top = std::max(10 * std::ceil(sound.peak() / 10.0), Spectrogram::silence + shown);
  std::vector<std::uint8_t> pixels;
  pixels.reserve(sound.level.size());
  for (const float level : sound.level)
    pixels.push_back(static_cast<std::uint8_t>(std::clamp(255 * (level - top + shown) / shown, 0.0, 255.0)));
  const std::string png = encode_png(pixels, static_cast<std::uint32_t>(sound.columns),
                                     static_cast<std::uint32_t>(sound.bands), gradient(through));

  detail::Frame frame{"Mel spectrogram",
                      "seconds",
                      detail::labelled(detail::linear_axis(0, sound.seconds, 5, true)),
                      {},
                      180,
                      6};
  for (const double hertz : {0.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0}) {
    const double place = mel_of_hertz(hertz) / mel_of_hertz(sound.top_hertz);
    if (place <= 1.001)
      frame.y_ticks.emplace_back(
          place, hertz < 1000 ? number_text(hertz) + " Hz" : number_text(hertz / 1000) + " kHz");
  }
  std::string colours;
  for (const Colour& c : through)
    colours += ",rgb(" + std::to_string(c[0]) + " " + std::to_string(c[1]) + " " + std::to_string(c[2]) + ")";
  return "<figure class=\"chart\"><figcaption><strong>Mel spectrogram</strong><span class=\"muted\">" +
         number_text(top - shown) + " dB<span class=\"scale\" style=\"background:linear-gradient(90deg" +
         colours + ")\"></span>" + number_text(top) + " dB</span></figcaption>" + frame.open() +
         "<image width=\"100%\" height=\"100%\" preserveAspectRatio=\"none\" href=\"" +
         data_uri("image/png", std::as_bytes(std::span(png))) + "\"/></svg></figure>";
}

}  // namespace mttt
