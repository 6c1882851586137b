// What all commands of `diagnose` write: one web page that needs no network, verdict first, then figures,
// then numbers; each figure as SVG and PNG as well; numbers as CSV.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "mttt/io/html_report.hpp"
#include "mttt/io/plot_file.hpp"
#include "mttt/io/run_folder.hpp"

namespace diagnose {

using namespace mttt;

inline std::string percent_text(double share) { return number_text(100 * share, 3) + " %"; }

/// Means over windows of so many numbers; x is the middle of each. NaN is passed over.
inline Series windowed(std::string name, std::span<const double> y, std::size_t window) {
  Series means{std::move(name), {}, {}};
  window = std::max<std::size_t>(1, window);
  for (std::size_t at = 0; at < y.size(); at += window) {
    const std::size_t end = std::min(at + window, y.size());
    double sum = 0, count = 0;
    for (std::size_t i = at; i < end; ++i)
      if (std::isfinite(y[i])) sum += y[i], count += 1;
    means.x.push_back(static_cast<double>(at + end - 1) / 2);
    means.y.push_back(count > 0 ? sum / count : NAN);
  }
  return means;
}
/// A window that leaves about 60 points.
inline std::size_t window_for(std::size_t frames, Index wanted) {
  return wanted > 0 ? static_cast<std::size_t>(wanted) : std::max<std::size_t>(1, frames / 60);
}

using Table = std::vector<std::vector<std::string>>;  // the first line is the head, the first cell a name

inline std::string table_html(const Table& table) {
  std::string out = "<div class=\"wide\"><table>";
  for (std::size_t r = 0; r < table.size(); ++r) {
    out += "<tr>";
    for (std::size_t c = 0; c < table[r].size(); ++c) {
      const std::string tag = r == 0 ? "th" : "td";
      out += "<" + tag + (c > 0 ? " class=\"number\">" : ">") + escape_html(table[r][c]) + "</" + tag + ">";
    }
    out += "</tr>";
  }
  return out + "</table></div>";
}

class Page {
 public:
  Page(std::filesystem::path folder, std::string name, std::string title)
      : folder_(std::move(folder)), name_(std::move(name)), title_(std::move(title)) {
    make_folders(folder_);
  }

  /// Good news in green, bad in yellow.
  void verdict(const std::string& text, bool good) {
    body_ += good ? "<div class=\"note\" style=\"background:var(--card);border-color:var(--s2)\"><p>"
                  : "<div class=\"note\"><p>";
    body_ += escape_html(text) + "</p></div>\n";
    std::printf("%s\n", text.c_str());
  }
  void heading(std::string_view text) { body_ += "<h2>" + escape_html(text) + "</h2>\n"; }
  void paragraph(std::string_view text) { body_ += "<section>" + detail::muted(text) + "</section>\n"; }
  /// HTML in a card.
  void section(const std::string& html) { body_ += "<section>" + html + "</section>\n"; }
  void small_section(const std::string& html) {
    body_ += "<section class=\"small\">" + html + "</section>\n";
  }
  void text(std::string_view words) { section("<p class=\"text\">" + escape_html(words) + "</p>"); }

  /// The chart's HTML; it is written as `stem`.svg and .png too.
  std::string chart(const std::string& stem, std::span<const Series> lines,
                    const ChartOptions& options) const {
    write_file_atomically(folder_ / (stem + ".svg"), plot_svg(lines, options));
    write_file_atomically(folder_ / (stem + ".png"), plot_png(lines, options));
    return line_chart(lines, options);
  }
  void file(const std::string& name, std::string_view content) const {
    write_file_atomically(folder_ / name, content);
  }
  void write() const {
    const auto path = folder_ / (name_ + ".html");
    write_file_atomically(path, html_page(title_, body_));
    std::printf("wrote %s\n", path.c_str());
  }

 private:
  std::filesystem::path folder_;
  std::string name_, title_, body_;
};

/// Lines of comma separated values.
inline std::string csv_of(const Table& table) {
  std::string out;
  for (const auto& line : table) {
    for (std::size_t i = 0; i < line.size(); ++i) {
      std::string cell = line[i];
      if (cell.find_first_of(",\"\n") != std::string::npos) {
        std::string quoted = "\"";
        for (const char c : cell) quoted += c == '"' ? "\"\"" : std::string(1, c);
        cell = quoted + "\"";
      }
      out += (i == 0 ? "" : ",") + cell;
    }
    out += '\n';
  }
  return out;
}
/// A number for a CSV: all its digits, empty where there is none.
inline std::string exact(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "" : value > 0 ? "inf" : "-inf";
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

}  // namespace diagnose
