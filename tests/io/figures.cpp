// The parts of a report page that are drawn: PNG pictures, spectrograms, line charts.
#include <numbers>

#include "mttt/io/plot_file.hpp"
#include "mttt/io/svg_plot.hpp"
#include "scratch.hpp"

using mttt::Series;

namespace {

std::size_t count(std::string_view text, std::string_view part) {
  std::size_t found = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != text.npos; at += part.size()) ++found;
  return found;
}

/// The path data of every <path> of a class.
std::vector<std::string> paths(const std::string& svg, const std::string& kind) {
  std::vector<std::string> out;
  for (std::size_t at = 0; (at = svg.find("<path class=\"" + kind + "\"", at)) != svg.npos; ++at) {
    const std::size_t from = svg.find(" d=\"", at) + 4;
    out.push_back(svg.substr(from, svg.find('"', from) - from));
  }
  return out;
}

std::size_t points(const std::string& path) { return count(path, "M") + count(path, "L"); }

std::uint32_t big_endian(std::string_view bytes) {
  std::uint32_t value = 0;
  for (const char c : bytes.substr(0, 4)) value = value << 8 | static_cast<unsigned char>(c);
  return value;
}

struct Picture {
  std::uint32_t width = 0, height = 0;
  std::string palette, pixels;
};

/// Reads back what encode_png may write, and checks every length and sum on the way.
Picture decode_png(std::string_view png) {
  REQUIRE(png.substr(0, 8) == "\x89PNG\r\n\x1a\n");
  Picture out;
  std::string order, data;
  for (std::size_t at = 8; at < png.size();) {
    const std::uint32_t size = big_endian(png.substr(at));
    const std::string_view body = png.substr(at + 4, 4 + size);  // type and data
    REQUIRE(body.size() == 4 + size);
    CHECK(big_endian(png.substr(at + 8 + size)) == mttt::detail::crc32(body));
    const std::string_view content = body.substr(4);
    order += std::string(body.substr(0, 4)) + " ";
    if (body.starts_with("IHDR")) {
      out.width = big_endian(content), out.height = big_endian(content.substr(4));
      CHECK(content.substr(8) == std::string_view("\x08\x03\0\0\0", 5));
    }
    if (body.starts_with("PLTE")) out.palette = content;
    if (body.starts_with("IDAT")) data = content;
    at += 12 + size;
  }
  CHECK(order == "IHDR PLTE IDAT IEND ");

  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(data.at(i)); };
  CHECK((byte(0) * 256 + byte(1)) % 31 == 0);
  std::string rows;
  std::size_t at = 2;
  for (bool last = false; !last;) {
    last = byte(at) == 1;
    const std::size_t size = byte(at + 1) + 256u * byte(at + 2);
    CHECK((size ^ 0xffffu) == byte(at + 3) + 256u * byte(at + 4));
    rows += data.substr(at + 5, size);
    at += 5 + size;
  }
  CHECK(big_endian(std::string_view(data).substr(at)) == mttt::detail::adler32(rows));
  CHECK(at + 4 == data.size());
  REQUIRE(rows.size() == std::size_t{out.height} * (out.width + 1));
  for (std::uint32_t y = 0; y < out.height; ++y) {
    CHECK(rows[y * (out.width + 1)] == '\0');
    out.pixels += rows.substr(y * (out.width + 1) + 1, out.width);
  }
  return out;
}

std::vector<float> sine(double hertz, int sample_rate, std::size_t frames, double level) {
  std::vector<float> out(frames);
  for (std::size_t t = 0; t < frames; ++t)
    out[t] = static_cast<float>(
        level * std::sin(2 * std::numbers::pi * hertz * static_cast<double>(t) / sample_rate));
  return out;
}

}  // namespace

TEST_CASE("check sums are those of the standards", "[io]") {
  CHECK(mttt::detail::crc32("123456789") == 0xcbf43926u);  // the catalogue's check value
  CHECK(mttt::detail::crc32("IEND") == 0xae426082u);       // ends every PNG file
  CHECK(mttt::detail::adler32("Wikipedia") == 0x11e60398u);
}

TEST_CASE("a PNG reads back as it was drawn", "[io]") {
  const mttt::Colour through[] = {{0, 10, 255}, {255, 10, 0}};
  const auto palette = mttt::gradient(through);
  CHECK(palette.front() == through[0]);
  CHECK(palette.back() == through[1]);
  for (const auto& [width, height] : {std::pair{1u, 1u}, {3u, 2u}, {900u, 96u}, {65534u, 1u}, {65534u, 2u}}) {
    INFO(width << " x " << height);
    std::vector<std::uint8_t> pixels(std::size_t{width} * height);
    for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<std::uint8_t>(i * 7 + i / 256);
    const Picture back = decode_png(mttt::encode_png(pixels, width, height, palette));
    CHECK(back.width == width);
    CHECK(back.height == height);
    CHECK(back.palette.size() == 768);
    CHECK(back.pixels == std::string(pixels.begin(), pixels.end()));
  }
  check_refused([&] { mttt::encode_png({}, 0, 0, palette); }, "0 x 0");
  check_refused([&] { mttt::encode_png(std::vector<std::uint8_t>(5), 2, 3, palette); }, "5 pixels");
}

TEST_CASE("a tone lies where it sounds, as loud as it is", "[io]") {
  for (const int rate : {8000, 16000, 24000}) {
    for (const double hertz : {300.0, 1000.0, 3000.0}) {
      INFO(hertz << " Hz at " << rate << " Hz");
      const auto loud = mttt::mel_spectrogram(sine(hertz, rate, 24000, 0.5), rate);
      const auto quiet = mttt::mel_spectrogram(sine(hertz, rate, 24000, 0.125), rate);
      const std::size_t column = loud.columns / 2;
      std::size_t best = 0;
      for (std::size_t b = 0; b < loud.bands; ++b)
        if (loud.level[b * loud.columns + column] > loud.level[best * loud.columns + column]) best = b;
      const double place = mttt::mel_of_hertz(hertz) / mttt::mel_of_hertz(rate / 2.0);  // 0 at the bottom
      CHECK(std::abs((1 - place) * static_cast<double>(loud.bands) - (static_cast<double>(best) + 0.5)) <
            1.5);
      CHECK(loud.peak() - quiet.peak() == Approx(20 * std::log10(4)).margin(0.01));
      CHECK(loud.peak() < -6);  // amplitude 0.5 is -6.02 dB; a band wider than the tone has less
      CHECK(loud.peak() > -15);
    }
  }
  CHECK(mttt::hertz_of_mel(mttt::mel_of_hertz(440)) == Approx(440));
}

TEST_CASE("spectrograms of silence, of next to nothing and of an hour", "[io]") {
  for (const std::size_t frames : {1u, 2u, 100u, 5000u}) {
    const auto silence = mttt::mel_spectrogram(std::vector<float>(frames), 24000);
    CHECK(silence.peak() == mttt::Spectrogram::silence);
    CHECK(silence.level.size() == silence.bands * silence.columns);
    CHECK(silence.columns <= frames);
  }
  // A click of 2 ms anywhere in a long recording is seen, in its column.
  std::vector<float> hour(8000 * 3600);
  const std::size_t click = 8000 * 1234 + 77;
  for (std::size_t i = 0; i < 16; ++i) hour[click + i] = i % 2 ? 1.0f : -1.0f;
  const auto seen = mttt::mel_spectrogram(hour, 8000, 8, 900);
  const std::size_t column = click * 900 / hour.size();
  for (std::size_t c = 0; c < 900; ++c)
    if (c + 1 < column || c > column + 1) REQUIRE(seen.level[c] == mttt::Spectrogram::silence);
  CHECK(seen.level[column] > mttt::Spectrogram::silence + 30);
  check_refused([] { mttt::mel_spectrogram({}, 24000); }, "no samples");
  check_refused([] { mttt::mel_spectrogram(std::vector<float>(10), 0); }, "no samples, no rate");
}

TEST_CASE("a chart has a point for every value and a line for every run", "[io]") {
  Series a{"a", {}, {}}, b{"b <i>", {}, {}};
  for (int i = 1; i <= 200; ++i) {
    for (Series* s : {&a, &b}) s->x.push_back(i * 5), s->y.push_back(8.0 / i + (s == &a ? 3 : 3.5));
  }
  const std::vector<Series> both{a, b};
  const std::string svg = mttt::line_chart(both, {"Loss", "step", mttt::Scale::log_if_wide, 5, true});
  for (const std::string kind : {"raw", "line"}) {
    const auto found = paths(svg, kind);
    REQUIRE(found.size() == 2);
    for (const auto& path : found) CHECK(points(path) == 200);
  }
  CHECK(count(svg, "<circle") == 2);
  CHECK(svg.find("b &lt;i&gt; 3.54") != svg.npos);
  CHECK(svg.find("<i>") == svg.npos);
  for (const char* label : {">0<", ">200<", ">1000<", ">step<", ">4<", ">10<"}) {
    INFO(label);
    CHECK(svg.find(label) != svg.npos);
  }
  CHECK(svg.find("log scale") == svg.npos);  // 11 to 3 is not wide
  Series wide{"wide", {1, 2, 3}, {1000, 10, 1}};
  CHECK(mttt::line_chart(std::span(&wide, 1), {"x", "", mttt::Scale::log_if_wide}).find("log scale") !=
        svg.npos);
  wide.y[1] = 0;  // has no logarithm
  CHECK(mttt::line_chart(std::span(&wide, 1), {"x", "", mttt::Scale::log_if_wide}).find("log scale") ==
        svg.npos);
}

TEST_CASE("charts of nothing, of one value, of constants and of gaps", "[io]") {
  const auto draw = [](const Series& line, bool smooth = false) {
    return mttt::line_chart(std::span(&line, 1), {"t", "step", mttt::Scale::log_if_wide, 5, smooth});
  };
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const std::vector<std::pair<Series, std::size_t>> cases = {
      {{"empty", {}, {}}, 0},
      {{"one", {1}, {2.5}}, 1},
      {{"zero", {0}, {0}}, 1},
      {{"constant", {1, 2, 3}, {-7, -7, -7}}, 3},
      {{"gaps", {1, 2, 3, 4, 5, 6}, {3, NAN, 2, infinity, -infinity, 1}}, 3},
      {{"none", {1, 2}, {NAN, NAN}}, 0},
      {{"huge", {1, 2}, {-1e300, 1e300}}, 2},
      {{"tiny", {1, 2}, {1e-300, 2e-300}}, 2}};
  for (const auto& [line, wanted] : cases) {
    INFO(line.name);
    for (const bool smooth : {false, true}) {
      const std::string svg = draw(line, smooth);
      CHECK(svg.find(line.name) != svg.npos);
      CHECK(svg.find("nan%") == svg.npos);
      CHECK(svg.find("inf") == svg.npos);
      std::size_t drawn = 0;
      for (const auto& path : paths(svg, "line")) drawn += points(path);
      CHECK(drawn == wanted);
      CHECK(count(svg, "<circle") == (wanted > 0 ? 1 : 0));
    }
  }
  CHECK(count(paths(draw(cases[4].first), "line")[0], "M") == 3);  // a gap lifts the pen
}

TEST_CASE("long series are thinned without losing a spike", "[io]") {
  std::vector<double> y(100'001);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] = std::sin(static_cast<double>(i) / 1000);
  y[12'345] = 50;
  y[77'777] = -50;
  const auto kept = mttt::detail::thinned(y, 1500);
  CHECK(kept.size() <= 1503);
  CHECK(kept.size() > 1400);
  CHECK(std::is_sorted(kept.begin(), kept.end()));
  CHECK(std::adjacent_find(kept.begin(), kept.end()) == kept.end());
  for (const std::size_t i : {std::size_t{0}, std::size_t{12'345}, std::size_t{77'777}, y.size() - 1})
    CHECK(std::binary_search(kept.begin(), kept.end(), i));
  CHECK(mttt::detail::thinned(std::span(y).first(1500), 1500).size() == 1500);
  CHECK(mttt::detail::thinned({}, 1500).empty());
}

TEST_CASE("smoothing does not move a line and passes over NaN", "[io]") {
  std::vector<double> slope(101), noisy(101);
  for (std::size_t i = 0; i < 101; ++i) {
    slope[i] = 10 - 0.05 * static_cast<double>(i);
    noisy[i] = slope[i] + (i % 2 ? 1 : -1);
  }
  const auto middle = mttt::smoothed(slope, 3);
  const auto calm = mttt::smoothed(noisy, 3);
  for (std::size_t i = 40; i < 60; ++i) {
    CHECK(middle[i] == Approx(slope[i]).epsilon(1e-6));  // looking both ways, it does not lag
    CHECK(std::abs(calm[i] - slope[i]) < 0.05);
  }
  const auto gap = mttt::smoothed(std::vector<double>{2, NAN, 2, 2}, 5);
  CHECK(std::isnan(gap[1]));
  for (const std::size_t i : {0, 2, 3}) CHECK(gap[i] == Approx(2));
}

TEST_CASE("a recording is drawn from its loudest samples", "[io]") {
  std::vector<float> samples(10'000, 0.0f);
  samples[5001] = 0.25f;
  samples[5002] = -0.5f;
  const std::string svg = mttt::waveform_chart(samples, 1000);
  const auto wave = paths(svg, "wave");
  REQUIRE(wave.size() == 1);
  CHECK(points(wave[0]) == 2 * 900);
  CHECK(wave[0].find(" 250.0") != svg.npos);   // half way up
  CHECK(wave[0].find(" 1000.0") != svg.npos);  // at the bottom
  CHECK(svg.find(">10<") != svg.npos);         // seconds
  CHECK(svg.find("\u22120.5<") != svg.npos);
  CHECK(points(paths(mttt::waveform_chart(std::vector<float>(3), 1000), "wave")[0]) == 6);

  const std::string picture = mttt::spectrogram_chart(mttt::mel_spectrogram(samples, 16000));
  CHECK(count(picture, "data:image/png;base64,iVBORw0KGgo") == 1);
  for (const char* label : {"8 kHz", "1 kHz", "500 Hz", "dB", ">seconds<"})
    CHECK(picture.find(label) != picture.npos);
}

TEST_CASE("A chart as a file: lines where the data are, in SVG and in PNG") {
  using namespace mttt;
  const std::vector<Series> rising = {{"a < b", {0, 1}, {0, 1}}}, falling = {{"a < b", {0, 1}, {1, 0}}},
                            gap = {{"gap", {0, 1, 2, 3}, {0, NAN, NAN, 1}}};
  const ChartOptions options{.title = "Title; 100 %", .x_label = "frame"};
  const std::string svg = plot_svg(rising, options);
  CHECK(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 960 420\""));
  CHECK(svg.find("d=\"M86.0 368.0L940.0 66.0\"") != svg.npos);
  CHECK(svg.find(">a &lt; b</text>") != svg.npos);
  CHECK(svg.find(">Title; 100 %</text>") != svg.npos);
  CHECK(plot_svg(falling, options).find("d=\"M86.0 66.0L940.0 368.0\"") != svg.npos);
  CHECK(svg.find("stroke-width=\"2\"") != svg.npos);
  CHECK(plot_svg(gap, options).find("stroke-width=\"2\"") == svg.npos);  // two points that no line joins

  // Rows of one byte a pixel lie in stored blocks of 65535 bytes: the corner pixels of the area tell.
  const auto pixel = [](const std::string& png, std::size_t x, std::size_t y) {
    const std::size_t at = y * 961 + 1 + x, idat = png.find("IDAT") + 4;
    return static_cast<unsigned char>(png[idat + 2 + at + 5 * (at / 65535 + 1)]);
  };
  const std::string up = plot_png(rising, options), down = plot_png(falling, options);
  CHECK(up.starts_with("\x89PNG"));
  CHECK(pixel(up, 88, 366) > 0);  // the first colour has shades 1 to 30
  CHECK(pixel(up, 88, 366) <= 30);
  CHECK(pixel(up, 938, 67) > 0);
  CHECK(pixel(up, 500, 100) == 0);
  CHECK(pixel(down, 938, 366) > 0);
  CHECK(pixel(down, 88, 366) == 0);
}
