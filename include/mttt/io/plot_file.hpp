// Line charts as files: the same chart as an SVG that any viewer opens, and as a PNG that any program shows.
//
// The page's own charts (io/svg_plot.hpp) take colours and sizes from its style sheet; these bring their own,
// dark lines on white.
//
// Shapes:  series x (n), y (n); NaN in y is a gap.
// Units:   those of the data; pixels.
// Errors:  none, as for io/svg_plot.hpp.
// Not supported: more than six colours; letters beyond ASCII in a PNG, but for the signs of numbers.
// Source:  SVG 1.1.
#pragma once

#include <array>

#include "mttt/io/file.hpp"
#include "mttt/io/svg_plot.hpp"

namespace mttt {
namespace detail {

inline constexpr int chart_width = 960, chart_height = 420;

/// Rows of a letter, the leftmost of five columns in bit 4.
struct Letter {
  char name;
  std::array<std::uint8_t, 7> rows;
};
inline constexpr Letter letters[] = {
    {'0', {0x0e, 0x11, 0x13, 0x15, 0x19, 0x11, 0x0e}}, {'1', {0x04, 0x0c, 0x04, 0x04, 0x04, 0x04, 0x0e}},
    {'2', {0x0e, 0x11, 0x01, 0x02, 0x04, 0x08, 0x1f}}, {'3', {0x1f, 0x02, 0x04, 0x02, 0x01, 0x11, 0x0e}},
    {'4', {0x02, 0x06, 0x0a, 0x12, 0x1f, 0x02, 0x02}}, {'5', {0x1f, 0x10, 0x1e, 0x01, 0x01, 0x11, 0x0e}},
    {'6', {0x06, 0x08, 0x10, 0x1e, 0x11, 0x11, 0x0e}}, {'7', {0x1f, 0x01, 0x02, 0x04, 0x08, 0x08, 0x08}},
    {'8', {0x0e, 0x11, 0x11, 0x0e, 0x11, 0x11, 0x0e}}, {'9', {0x0e, 0x11, 0x11, 0x0f, 0x01, 0x02, 0x0c}},
    {'A', {0x0e, 0x11, 0x11, 0x1f, 0x11, 0x11, 0x11}}, {'B', {0x1e, 0x11, 0x11, 0x1e, 0x11, 0x11, 0x1e}},
    {'C', {0x0e, 0x11, 0x10, 0x10, 0x10, 0x11, 0x0e}}, {'D', {0x1c, 0x12, 0x11, 0x11, 0x11, 0x12, 0x1c}},
    {'E', {0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x1f}}, {'F', {0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x10}},
    {'G', {0x0e, 0x11, 0x10, 0x17, 0x11, 0x11, 0x0f}}, {'H', {0x11, 0x11, 0x11, 0x1f, 0x11, 0x11, 0x11}},
    {'I', {0x0e, 0x04, 0x04, 0x04, 0x04, 0x04, 0x0e}}, {'J', {0x07, 0x02, 0x02, 0x02, 0x02, 0x12, 0x0c}},
    {'K', {0x11, 0x12, 0x14, 0x18, 0x14, 0x12, 0x11}}, {'L', {0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x1f}},
    {'M', {0x11, 0x1b, 0x15, 0x15, 0x11, 0x11, 0x11}}, {'N', {0x11, 0x11, 0x19, 0x15, 0x13, 0x11, 0x11}},
    {'O', {0x0e, 0x11, 0x11, 0x11, 0x11, 0x11, 0x0e}}, {'P', {0x1e, 0x11, 0x11, 0x1e, 0x10, 0x10, 0x10}},
    {'Q', {0x0e, 0x11, 0x11, 0x11, 0x15, 0x12, 0x0d}}, {'R', {0x1e, 0x11, 0x11, 0x1e, 0x14, 0x12, 0x11}},
    {'S', {0x0f, 0x10, 0x10, 0x0e, 0x01, 0x01, 0x1e}}, {'T', {0x1f, 0x04, 0x04, 0x04, 0x04, 0x04, 0x04}},
    {'U', {0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x0e}}, {'V', {0x11, 0x11, 0x11, 0x11, 0x11, 0x0a, 0x04}},
    {'W', {0x11, 0x11, 0x11, 0x15, 0x15, 0x15, 0x0a}}, {'X', {0x11, 0x11, 0x0a, 0x04, 0x0a, 0x11, 0x11}},
    {'Y', {0x11, 0x11, 0x11, 0x0a, 0x04, 0x04, 0x04}}, {'Z', {0x1f, 0x01, 0x02, 0x04, 0x08, 0x10, 0x1f}},
    {'a', {0x00, 0x00, 0x0e, 0x01, 0x0f, 0x11, 0x0f}}, {'b', {0x10, 0x10, 0x16, 0x19, 0x11, 0x11, 0x1e}},
    {'c', {0x00, 0x00, 0x0e, 0x10, 0x10, 0x11, 0x0e}}, {'d', {0x01, 0x01, 0x0d, 0x13, 0x11, 0x11, 0x0f}},
    {'e', {0x00, 0x00, 0x0e, 0x11, 0x1f, 0x10, 0x0e}}, {'f', {0x06, 0x09, 0x08, 0x1c, 0x08, 0x08, 0x08}},
    {'g', {0x00, 0x0f, 0x11, 0x11, 0x0f, 0x01, 0x0e}}, {'h', {0x10, 0x10, 0x16, 0x19, 0x11, 0x11, 0x11}},
    {'i', {0x04, 0x00, 0x0c, 0x04, 0x04, 0x04, 0x0e}}, {'j', {0x02, 0x00, 0x06, 0x02, 0x02, 0x12, 0x0c}},
    {'k', {0x10, 0x10, 0x12, 0x14, 0x18, 0x14, 0x12}}, {'l', {0x0c, 0x04, 0x04, 0x04, 0x04, 0x04, 0x0e}},
    {'m', {0x00, 0x00, 0x1a, 0x15, 0x15, 0x11, 0x11}}, {'n', {0x00, 0x00, 0x16, 0x19, 0x11, 0x11, 0x11}},
    {'o', {0x00, 0x00, 0x0e, 0x11, 0x11, 0x11, 0x0e}}, {'p', {0x00, 0x00, 0x1e, 0x11, 0x1e, 0x10, 0x10}},
    {'q', {0x00, 0x00, 0x0d, 0x13, 0x0f, 0x01, 0x01}}, {'r', {0x00, 0x00, 0x16, 0x19, 0x10, 0x10, 0x10}},
    {'s', {0x00, 0x00, 0x0e, 0x10, 0x0e, 0x01, 0x1e}}, {'t', {0x08, 0x08, 0x1c, 0x08, 0x08, 0x09, 0x06}},
    {'u', {0x00, 0x00, 0x11, 0x11, 0x11, 0x13, 0x0d}}, {'v', {0x00, 0x00, 0x11, 0x11, 0x11, 0x0a, 0x04}},
    {'w', {0x00, 0x00, 0x11, 0x11, 0x15, 0x15, 0x0a}}, {'x', {0x00, 0x00, 0x11, 0x0a, 0x04, 0x0a, 0x11}},
    {'y', {0x00, 0x00, 0x11, 0x11, 0x0f, 0x01, 0x0e}}, {'z', {0x00, 0x00, 0x1f, 0x02, 0x04, 0x08, 0x1f}},
    {'.', {0x00, 0x00, 0x00, 0x00, 0x00, 0x0c, 0x0c}}, {',', {0x00, 0x00, 0x00, 0x00, 0x0c, 0x04, 0x08}},
    {'-', {0x00, 0x00, 0x00, 0x1f, 0x00, 0x00, 0x00}}, {'+', {0x00, 0x04, 0x04, 0x1f, 0x04, 0x04, 0x00}},
    {'(', {0x02, 0x04, 0x08, 0x08, 0x08, 0x04, 0x02}}, {')', {0x08, 0x04, 0x02, 0x02, 0x02, 0x04, 0x08}},
    {'_', {0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x1f}}, {'/', {0x00, 0x01, 0x02, 0x04, 0x08, 0x10, 0x00}},
    {':', {0x00, 0x0c, 0x0c, 0x00, 0x0c, 0x0c, 0x00}}, {';', {0x00, 0x0c, 0x0c, 0x00, 0x0c, 0x04, 0x08}},
    {'%', {0x18, 0x19, 0x02, 0x04, 0x08, 0x13, 0x03}}, {'=', {0x00, 0x00, 0x1f, 0x00, 0x1f, 0x00, 0x00}},
    {'|', {0x04, 0x04, 0x04, 0x04, 0x04, 0x04, 0x04}}, {'<', {0x02, 0x04, 0x08, 0x10, 0x08, 0x04, 0x02}},
    {'>', {0x08, 0x04, 0x02, 0x01, 0x02, 0x04, 0x08}}};

/// What a PNG's letters can spell: typographic signs become those of a typewriter.
inline std::string typewritten(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t length = std::max<std::size_t>(1, utf8_length(text));
    const std::string_view letter = text.substr(0, length);
    if (length == 1)
      out += letter;
    else if (letter == "\u2212" || letter == "\u2013")
      out += '-';
    else if (letter == "\u202f")
      out += ' ';
    else
      out += '?';
    text.remove_prefix(length);
  }
  return out;
}

inline constexpr std::array<Colour, 8> chart_colours = {{{34, 104, 196},
                                                         {210, 96, 26},
                                                         {22, 135, 122},
                                                         {138, 79, 192},
                                                         {184, 51, 106},
                                                         {111, 122, 18},
                                                         {70, 72, 78},       // letters
                                                         {200, 202, 206}}};  // grid
inline constexpr std::size_t letter_colour = 6, grid_colour = 7;

enum class Anchor { start, middle, end };

class SvgCanvas {
 public:
  void line(std::span<const std::array<double, 2>> points, std::size_t colour, double width, double opacity) {
    out_ += "<path fill=\"none\" stroke=\"" + name(colour) + "\" stroke-width=\"" + number_text(width) +
            "\" stroke-opacity=\"" + number_text(opacity) + "\" d=\"";
    char text[64];
    for (std::size_t i = 0; i < points.size(); ++i) {
      std::snprintf(text, sizeof text, "%c%.1f %.1f", i == 0 ? 'M' : 'L', points[i][0], points[i][1]);
      out_ += text;
    }
    out_ += "\"/>\n";
  }
  void text(double x, double y, std::string_view words, Anchor anchor, bool large = false) {
    constexpr const char* anchors[] = {"start", "middle", "end"};
    out_ += "<text x=\"" + number_text(x) + "\" y=\"" + number_text(y + 4) + "\" text-anchor=\"" +
            anchors[static_cast<int>(anchor)] + "\" font-size=\"" + (large ? "16" : "13") + "\">" +
            escape_html(words) + "</text>\n";
  }
  /// About how far words reach.
  static double reach(std::string_view words) { return 7.5 * static_cast<double>(words.size()); }
  std::string file() const {
    return cat("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", chart_width, " ", chart_height,
               "\" font-family=\"sans-serif\" fill=\"", name(letter_colour),
               "\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n", out_, "</svg>\n");
  }

 private:
  static std::string name(std::size_t colour) {
    const Colour& c = chart_colours[colour];
    return cat("rgb(", int{c[0]}, ",", int{c[1]}, ",", int{c[2]}, ")");
  }
  std::string out_;
};

/// 31 shades of each colour between white and itself: the palette's index is colour * 31 + shade.
class PngCanvas {
 public:
  void line(std::span<const std::array<double, 2>> points, std::size_t colour, double width, double opacity) {
    for (std::size_t i = 1; i < points.size(); ++i) stroke(points[i - 1], points[i], colour, width, opacity);
  }
  void text(double x, double y, std::string_view words, Anchor anchor, bool = false) {
    const std::string plain = typewritten(words);
    const double part = anchor == Anchor::start ? 0 : anchor == Anchor::middle ? 0.5 : 1;
    int left = static_cast<int>(std::lround(x - part * reach(plain)));
    for (const char c : plain) {
      for (const Letter& letter : letters) {
        if (letter.name != c) continue;
        for (int row = 0; row < 14; ++row)
          for (int column = 0; column < 10; ++column)
            if (letter.rows[static_cast<std::size_t>(row / 2)] >> (4 - column / 2) & 1)
              cover(left + column, static_cast<int>(y) - 7 + row, letter_colour, 1);
      }
      left += 12;
    }
  }
  static double reach(std::string_view words) { return 12 * static_cast<double>(typewritten(words).size()); }
  std::string file() const {
    Palette palette{};
    for (std::size_t i = 0; i < palette.size(); ++i) {
      const std::size_t colour = std::min<std::size_t>(i / 31, chart_colours.size() - 1), shade = i % 31;
      for (std::size_t c = 0; c < 3; ++c)
        palette[i][c] = static_cast<std::uint8_t>(255 - (255 - chart_colours[colour][c]) * shade / 30);
    }
    return encode_png(pixels_, chart_width, chart_height, palette);
  }

 private:
  void stroke(std::array<double, 2> from, std::array<double, 2> to, std::size_t colour, double width,
              double opacity) {
    const double dx = to[0] - from[0], dy = to[1] - from[1], length = dx * dx + dy * dy,
                 around = width / 2 + 1;
    for (int y = static_cast<int>(std::min(from[1], to[1]) - around);
         y <= static_cast<int>(std::max(from[1], to[1]) + around); ++y) {
      for (int x = static_cast<int>(std::min(from[0], to[0]) - around);
           x <= static_cast<int>(std::max(from[0], to[0]) + around); ++x) {
        const double along =
            length == 0 ? 0 : std::clamp(((x - from[0]) * dx + (y - from[1]) * dy) / length, 0.0, 1.0);
        const double off = std::hypot(x - from[0] - along * dx, y - from[1] - along * dy);
        cover(x, y, colour, opacity * std::clamp(width / 2 + 0.5 - off, 0.0, 1.0));
      }
    }
  }
  void cover(int x, int y, std::size_t colour, double share) {
    if (x < 0 || y < 0 || x >= chart_width || y >= chart_height) return;
    auto& pixel = pixels_[static_cast<std::size_t>(y) * chart_width + static_cast<std::size_t>(x)];
    const auto shade = static_cast<std::uint8_t>(std::lround(30 * share));
    if (shade > 0 && shade >= pixel % 31) pixel = static_cast<std::uint8_t>(colour * 31 + shade);
  }
  std::vector<std::uint8_t> pixels_ = std::vector<std::uint8_t>(chart_width * chart_height);
};

template <class Canvas>
void draw_chart(Canvas& canvas, std::span<const Series> lines, const ChartOptions& options) {
  const ChartAxes axes = axes_of(lines, options);
  const double left = 86, right = chart_width - 20, top = 66, bottom = chart_height - 52;
  const auto across = [&](double place) { return left + place * (right - left); };
  const auto up = [&](double place) { return bottom - place * (bottom - top); };
  for (const double tick : axes.y.ticks) {
    const double y = up(axes.y.place(tick));
    canvas.line(std::array<std::array<double, 2>, 2>{{{left, y}, {right, y}}}, grid_colour, 1, 1);
    canvas.text(left - 8, y, tick_text(tick), Anchor::end);
  }
  for (const double tick : axes.x.ticks) {
    const double x = across(axes.x.place(tick));
    canvas.line(std::array<std::array<double, 2>, 2>{{{x, bottom}, {x, bottom + 5}}}, letter_colour, 1, 1);
    canvas.text(x, bottom + 16, tick_text(tick), Anchor::middle);
  }
  canvas.line(std::array<std::array<double, 2>, 2>{{{left, bottom}, {right, bottom}}}, letter_colour, 1, 1);
  canvas.text((left + right) / 2, chart_height - 14, options.x_label, Anchor::middle);
  canvas.text(20, 20, options.title + (axes.y.logarithmic ? ", log scale" : ""), Anchor::start, true);
  double legend = 20;
  for (std::size_t s = 0; s < lines.size(); ++s) {
    const Series& series = lines[s];
    canvas.line(std::array<std::array<double, 2>, 2>{{{legend, 46}, {legend + 18, 46}}}, s % 6, 3, 1);
    canvas.text(legend + 24, 46, series.name, Anchor::start);
    legend += 24 + canvas.reach(series.name) + 24;
    const bool two = options.smooth && series.y.size() >= 30;
    const auto stroke = [&](const std::vector<double>& values, double width, double opacity) {
      std::vector<std::array<double, 2>> points;
      const auto put = [&] {
        if (points.size() > 1) canvas.line(points, s % 6, width, opacity);
        points.clear();
      };
      for (const std::size_t i : thinned(values, options.most_points)) {
        const double x = across(axes.x.place(series.x[i])), y = up(axes.y.place(values[i]));
        std::isfinite(x) && std::isfinite(y) ? points.push_back({x, y}) : put();
      }
      put();
    };
    if (two) stroke(series.y, 1, 0.3);
    stroke(two ? smoothed(series.y, smoothing_reach(series.y.size())) : series.y, 2, 1);
  }
}

}  // namespace detail

/// The bytes of an SVG file.
inline std::string plot_svg(std::span<const Series> lines, const ChartOptions& options) {
  detail::SvgCanvas canvas;
  detail::draw_chart(canvas, lines, options);
  return canvas.file();
}

/// The bytes of a PNG file.
inline std::string plot_png(std::span<const Series> lines, const ChartOptions& options) {
  detail::PngCanvas canvas;
  detail::draw_chart(canvas, lines, options);
  return canvas.file();
}

}  // namespace mttt
