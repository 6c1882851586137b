// One web page about training runs and recordings that needs no network: curves, sounds, text and numbers.
//
// Shapes:  none.   Units: seconds, Hz; dB relative to full scale (dBFS).
// Errors:  "name=path" without a name or a path; a page about nothing.
// Not supported: scripts; pages that are updated while a run goes on (write it again).
// Source:  HTML Living Standard; CSS prefers-color-scheme.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mttt/io/html.hpp"
#include "mttt/io/metrics.hpp"
#include "mttt/io/summary_table.hpp"
#include "mttt/io/svg_plot.hpp"
#include "mttt/train/progress.hpp"

namespace mttt {

struct ReportSound {
  std::string name, path;
  std::vector<float> samples;  // (frames): one channel, or the mean of several
  int sample_rate = 0, channels = 1;
  std::string file;  // its bytes, to be heard on the page
};

struct Report {
  std::string title;
  std::vector<std::string> notes = {};  // what the reader must know first
  std::vector<Metrics> runs = {};
  std::vector<ReportSound> sounds = {};
  std::optional<std::string> transcript = {};
  std::optional<nlohmann::ordered_json> summary = {};
};

/// "name=path" of a command line, cut at the first '='.
inline std::pair<std::string, std::string> split_named(std::string_view option, std::string_view text) {
  const std::size_t at = text.find('=');
  if (at == std::string_view::npos || at == 0 || at + 1 == text.size()) {
    fail(option, detail::quote(text), "NAME=FILE",
         detail::cat("write, for example, ", option, " \"a name\"=folder/file"));
  }
  return {std::string(text.substr(0, at)), std::string(text.substr(at + 1))};
}

namespace detail {

inline constexpr std::string_view page_style = R"css(
:root{color-scheme:light dark;--page:#f6f6f4;--card:#fff;--ink:#1d1d1f;--muted:#5f6268;--grid:#e6e6e3;
--axis:#a9abb0;
--note:#fdf3d8;--note-line:#d9a514;--s0:#2268c4;--s1:#d2601a;--s2:#16877a;--s3:#8a4fc0;--s4:#b8336a;
--s5:#6f7a12}
@media(prefers-color-scheme:dark){:root{--page:#141517;--card:#1d1f22;--ink:#ececee;--muted:#a2a6ad;
--grid:#303338;
--axis:#6b7078;--note:#332b13;--note-line:#c99a1c;--s0:#6aa8f7;--s1:#f2914f;--s2:#45c2b0;--s3:#bd92ee;
--s4:#ee7ba9;
--s5:#b9c24a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:960px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:26px;line-height:1.25;margin:0 0 16px}h2{font-size:19px;margin:32px 0 12px}h3{font-size:16px;
margin:0}
section,.tile,.note{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:16px;
margin:0 0 16px}
.note{background:var(--note);border-color:var(--note-line);border-left-width:5px}
.note p{margin:0}.note p+p{margin-top:8px}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(140px,1fr));gap:12px}
.tile{margin:0;padding:10px 12px;color:var(--muted);font-size:13px;overflow-wrap:anywhere}
.tile b{display:block;color:var(--ink);font-size:16px;font-weight:600;line-height:1.4}
.small{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:8px 24px}
@media(max-width:480px){section,.note{padding:12px}.wide{font-size:13px}.wide th,.wide td{padding-right:8px}}
.sound>.muted{margin:4px 0 12px}.sound .chart{margin-top:14px}.sound audio{width:100%;display:block}p{
margin:0}
.text{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;max-height:24em;overflow-y:auto}
)css";

inline std::string muted(std::string_view text) { return "<p class=\"muted\">" + escape_html(text) + "</p>"; }

inline std::vector<Series> series_of(const std::vector<Metrics>& runs, const std::string& field) {
  std::vector<Series> lines;
  for (const Metrics& run : runs) {
    const auto* values = run.column(field);
    lines.push_back({run.name, run.steps, values ? *values : std::vector<double>(run.steps.size(), NAN)});
  }
  return lines;
}

/// First and last finite value of a field.
inline std::pair<double, double> ends_of(const Metrics& run, const std::string& field) {
  std::pair<double, double> ends(NAN, NAN);
  if (const auto* values = run.column(field)) {
    for (const double value : *values) {
      if (!std::isfinite(value)) continue;
      if (std::isnan(ends.first)) ends.first = value;
      ends.second = value;
    }
  }
  return ends;
}

inline std::string run_table(const std::vector<Metrics>& runs) {
  std::string out = "<div class=\"wide\"><table><tr><th>run</th>";
  for (const std::string_view head : {"steps", "loss, first", "last", "frames/s", "time"})
    out.append("<th class=\"number\">").append(head).append("</th>");
  out += "</tr>";
  for (const Metrics& run : runs) {
    const auto [first, last] = ends_of(run, "loss");
    const double speed = ends_of(run, "frames_per_second").second, seconds = ends_of(run, "seconds").second;
    const double most = ends_of(run, "max_steps").second, steps = run.steps.empty() ? 0 : run.steps.back();
    const auto cell = [&](const std::string& text) {
      out += "<td class=\"number\">" + escape_html(text) + "</td>";
    };
    const auto number = [&](double value) { cell(std::isnan(value) ? "\u2013" : number_text(value)); };
    out += "<tr><td>" + escape_html(run.name) + "</td>";
    cell(number_text(steps, 15) + (most > steps ? " of " + number_text(most, 15) : ""));
    number(first), number(last), number(speed);
    cell(std::isnan(seconds) ? "\u2013" : duration_text(seconds));
    out += "</tr>";
  }
  return out + "</table></div>";
}

/// The three inner losses of each TTT layer, where a run has logged them.
inline std::string inner_loss_charts(const Metrics& run, const std::string& before) {
  constexpr std::string_view start = "inner_loss_0_layer_";
  std::string out;
  for (const auto& [field, values] : run.columns) {
    if (!field.starts_with(start)) continue;
    const std::string layer = field.substr(start.size());
    std::vector<Series> lines = {{"l(W_0)", {}, {}}, {"l(W_t-1)", {}, {}}, {"l(W_t)", {}, {}}};
    constexpr const char* names[] = {"inner_loss_0_layer_", "inner_loss_prev_layer_",
                                     "inner_loss_after_layer_"};
    for (std::size_t i = 0; i < lines.size(); ++i) {
      const auto* column = run.column(names[i] + layer);
      for (std::size_t s = 0; column != nullptr && s < column->size(); ++s) {
        if (std::isnan((*column)[s])) continue;  // not every line has them
        lines[i].x.push_back(run.steps[s]), lines[i].y.push_back((*column)[s]);
      }
    }
    out += line_chart(lines,
                      {before + "inner losses, layer " + layer, "step", Scale::log_if_wide, 3, true, 600});
  }
  return out;
}

inline std::string training_section(const std::vector<Metrics>& runs) {
  std::string out = "<h2>Training</h2><section>";
  for (const Metrics& run : runs) {
    const auto* loss = run.column("loss");
    const auto bad = loss == nullptr ? 0 : std::count_if(loss->begin(), loss->end(), [](double v) {
      return !std::isfinite(v);
    });
    if (run.steps.empty()) out += muted("\u201c" + run.name + "\u201d has not logged a step.");
    if (bad > 0)
      out += muted(cat("\u201c", run.name, "\u201d: the loss of ", bad,
                       " logged step(s) is missing or not a number: gaps in its curve."));
  }
  out += line_chart(series_of(runs, "loss"), {"Loss", "step", Scale::log_if_wide, 5, true}) +
         run_table(runs) + "</section>";

  std::vector<std::string> fields = {"lr", "grad_norm"};
  for (const Metrics& run : runs)
    for (const auto& [field, values] : run.columns)
      if (field != "loss" && field != "max_steps" && field != "seconds" &&
          !field.starts_with("inner_loss_") && std::find(fields.begin(), fields.end(), field) == fields.end())
        fields.push_back(field);
  out += "<section class=\"small\">";
  for (const std::string& field : fields) {
    const bool rate = field == "lr", norm = field == "grad_norm";
    const std::string title =
        rate ? "Learning rate" : (norm ? "Gradient norm, before clipping" : label_of(field));
    out += line_chart(series_of(runs, field),
                      {title, "step", rate ? Scale::linear : Scale::log_if_wide, 3, !rate, 600});
  }
  for (const Metrics& run : runs) out += inner_loss_charts(run, runs.size() > 1 ? run.name + ", " : "");
  return out + "</section>";
}

inline std::string mime_of(std::string_view path) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 5> known = {
      {{".wav", "audio/wav"},
       {".flac", "audio/flac"},
       {".mp3", "audio/mpeg"},
       {".ogg", "audio/ogg"},
       {".opus", "audio/ogg"}}};
  for (const auto& [ending, mime] : known)
    if (path.ends_with(ending)) return std::string(mime);
  return {};
}

inline std::string decibels(double level) {
  return level > 0 ? number_text(20 * std::log10(level), 3) + " dBFS" : "silence";
}

inline std::string sound_section(const ReportSound& sound, std::size_t& space) {
  double peak = 0, power = 0;
  for (const float sample : sound.samples) {
    peak = std::max(peak, static_cast<double>(std::abs(sample)));
    power += static_cast<double>(sample) * sample / static_cast<double>(sound.samples.size());
  }
  const double seconds = static_cast<double>(sound.samples.size()) / sound.sample_rate;
  std::string out =
      "<section class=\"sound\"><h3>" + escape_html(sound.name) + "</h3>" +
      muted(cat(number_text(seconds, 3), " s, ", number_text(sound.sample_rate, 9), " Hz, ",
                sound.channels == 1 ? "mono" : cat(sound.channels, " channels"), ", peak ", decibels(peak),
                ", mean level ", decibels(std::sqrt(power)), " (", sound.path, ")"));
  const std::string mime = mime_of(sound.path);
  const std::size_t limit = std::min<std::size_t>(space, 3'000'000);
  if (mime.empty() || sound.file.empty() || sound.file.size() >= limit) {
    out += muted(mime.empty() ? "No player: browsers do not play this kind of file."
                              : cat("No player: ", sound.file.size(),
                                    " bytes would make this page too big; play the file itself."));
  } else {
    out += "<audio controls preload=\"metadata\" src=\"" +
           data_uri(mime, std::as_bytes(std::span(sound.file))) + "\"></audio>";
    space -= sound.file.size();
  }
  return out + waveform_chart(sound.samples, sound.sample_rate) +
         spectrogram_chart(mel_spectrogram(sound.samples, sound.sample_rate)) + "</section>";
}

/// Losses under each other are easier to compare with two decimals each.
inline std::string loss_text(double loss) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", loss);
  return loss >= 0.1 && loss < 100 ? text : number_text(loss, 3);
}

inline std::string tiles(const Report& report) {
  std::string out;
  const auto tile = [&](const std::string& value, const std::string& label) {
    out += "<div class=\"tile\"><b>" + escape_html(value) + "</b>" + escape_html(label) + "</div>";
  };
  for (const Metrics& run : report.runs) {
    const auto [first, last] = ends_of(run, "loss");
    if (!std::isnan(last))
      tile(loss_text(first) + " \u2192 " + loss_text(last), "training loss, " + run.name);
  }
  for (const std::string_view words : {"p50", "p99", "real_time_factor", "peak"}) {
    const auto found = report.summary ? find_number(*report.summary, words) : std::nullopt;
    if (!found) continue;
    tile(found->second, found->first);
  }
  return out.empty() ? "" : "<div class=\"tiles\">" + out + "</div>";
}

}  // namespace detail

/// A page of one title; `body` is HTML that the style sheets of this folder dress.
inline std::string html_page(const std::string& title, std::string_view body) {
  std::string out =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; media-src "
      "data:; "
      "style-src 'unsafe-inline'\">\n<title>" +
      escape_html(title) + "</title>\n<style>";
  out.append(detail::page_style).append(plot_style).append(summary_style);
  out += "</style></head>\n<body><main><h1>" + escape_html(title) + "</h1>\n";
  return out.append(body).append("\n</main></body></html>\n");
}

/// The whole page; sounds are embedded while they take less than 4 MB together, so that it stays below 6 MB.
inline std::string report_html(const Report& report) {
  if (report.notes.empty() && report.runs.empty() && report.sounds.empty() && !report.transcript &&
      !report.summary)
    fail("report", "nothing to show", "a note, a run, a sound, a transcript or a summary",
         "name at least one");
  std::string out;
  if (!report.notes.empty()) {
    out += "<div class=\"note\">";
    for (const auto& note : report.notes) out += "<p>" + escape_html(note) + "</p>";
    out += "</div>\n";
  }
  out += detail::tiles(report);
  if (!report.runs.empty()) out += detail::training_section(report.runs);
  std::size_t space = 4'000'000;  // bytes of sound; base64 makes a third more of it
  if (!report.sounds.empty()) out += "\n<h2>Sound</h2>";
  for (const ReportSound& sound : report.sounds) out += "\n" + detail::sound_section(sound, space);
  if (report.transcript) {
    const bool blank = report.transcript->find_first_not_of(" \t\r\n") == std::string::npos;
    out += "\n<h2>Transcript</h2><section>" +
           (blank ? detail::muted("The reply has no words.")
                  : "<p class=\"text\">" + escape_html(*report.transcript) + "</p>") +
           "</section>";
  }
  if (report.summary) out += "\n<h2>Numbers</h2><section>" + summary_table(*report.summary) + "</section>";
  return html_page(report.title, out);
}

}  // namespace mttt
