// The report page: metrics read back, numbers as a table, and the page itself.
#include "mttt/io/html_report.hpp"

#include "scratch.hpp"

using mttt::Metrics;
using mttt::Report;

namespace {

std::size_t count(std::string_view text, std::string_view part) {
  std::size_t found = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != text.npos; at += part.size()) ++found;
  return found;
}

bool has(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

/// A run of `n` logged steps, its loss falling to `floor`.
Metrics run(const std::string& name, int n, double floor = 3) {
  Metrics out{name, {}, {}};
  for (int i = 1; i <= n; ++i) {
    out.add({{"step", i * 10},
             {"max_steps", 10 * n},
             {"loss", floor + 5.0 / i},
             {"lr", 1e-4 * (n - i)},
             {"grad_norm", 1.0 + 1.0 / i},
             {"text_loss", 1.0 / i},
             {"frames_per_second", 100},
             {"seconds", i * 0.5}});
  }
  return out;
}

mttt::ReportSound sound(const std::string& name, std::size_t bytes) {
  std::vector<float> samples(24000);
  for (std::size_t t = 0; t < samples.size(); ++t) samples[t] = std::sin(static_cast<float>(t) * 0.1f) / 2;
  return {name, name + ".wav", std::move(samples), 24000, 1, std::string(bytes, 'x')};
}

}  // namespace

TEST_CASE("text and bytes become safe in a page", "[io]") {
  CHECK(mttt::escape_html("<a href=\"x\" title='y'>&amp;</a>\n") ==
        "&lt;a href=&quot;x&quot; title=&#39;y&#39;&gt;&amp;amp;&lt;/a&gt;\n");
  CHECK(mttt::escape_html("\u00e9\u2581\U0001f600") == "\u00e9\u2581\U0001f600");
  // Continuation alone, overlong, surrogate, beyond Unicode, cut off, controls: each wrong byte is one mark.
  const std::pair<std::string, int> wrong[] = {{"\x80", 1},         {"\xc0\xaf", 2},
                                               {"\xed\xa0\x80", 3}, {"\xf4\x90\x80\x80", 4},
                                               {"\xe2\x82", 2},     {std::string("\0\x1b\x7f", 3), 3}};
  for (const auto& [bytes, marks] : wrong) {
    const std::string safe = mttt::escape_html("a" + bytes + "b");
    CHECK(count(safe, "\xef\xbf\xbd") == static_cast<std::size_t>(marks));
    CHECK(safe.size() == 2 + 3 * static_cast<std::size_t>(marks));
  }
  const std::pair<const char*, const char*> rfc4648[] = {
      {"", ""}, {"f", "Zg=="}, {"fo", "Zm8="}, {"foo", "Zm9v"}, {"foob", "Zm9vYg=="}, {"foobar", "Zm9vYmFy"}};
  for (const auto& [plain, coded] : rfc4648)
    CHECK(mttt::base64(std::as_bytes(std::span(std::string_view(plain)))) == coded);
  CHECK(mttt::base64(std::as_bytes(std::span(std::string_view("\xff\xfe\xfd")))) == "//79");
}

TEST_CASE("numbers are written as people write them", "[io]") {
  const std::pair<double, const char*> cases[] = {{0, "0"},
                                                  {-0.0, "0"},
                                                  {1, "1"},
                                                  {3.14159, "3.142"},
                                                  {0.0391, "0.0391"},
                                                  {0.012345, "0.01235"},
                                                  {1500, "1500"},
                                                  {12345.6, "12\u202f346"},
                                                  {-2.5, "\u22122.5"},
                                                  {1234567, "1\u202f234\u202f567"},
                                                  {123456, "123\u202f456"},
                                                  {1.5e-7, "1.5e-7"},
                                                  {1e-12, "1e-12"},
                                                  {2e20, "2e20"},
                                                  {-3e-5, "\u22123e-5"},
                                                  {NAN, "NaN"},
                                                  {INFINITY, "\u221e"}};
  for (const auto& [value, text] : cases) CHECK(mttt::number_text(value) == text);
}

TEST_CASE("metrics are read with what was resumed and started anew", "[io]") {
  Scratch scratch;
  const auto path = scratch.put("metrics.jsonl",
                                "{\"step\":1,\"loss\":5,\"lr\":0.1}\n"
                                "{\"step\":2,\"loss\":4}\n"
                                "\n"
                                "{\"step\":3,\"loss\":9,\"note\":\"text\"}\n"
                                "{\"step\":4,\"loss\":9}\n"
                                "{\"resumed_at\":2}\n"
                                "{\"step\":3,\"loss\":null,\"grad_norm\":7}\n"
                                "{\"something\":\"else\"}\n"
                                "{\"step\":4,\"lo");  // the process was killed here
  const Metrics run = mttt::read_metrics(path, "a");
  CHECK(run.name == "a");
  CHECK(run.steps == std::vector<double>{1, 2, 3});
  REQUIRE(run.column("loss"));
  CHECK(run.column("loss")->at(0) == 5);
  CHECK(run.column("loss")->at(1) == 4);
  CHECK(std::isnan(run.column("loss")->at(2)));
  CHECK(run.column("lr")->at(0) == 0.1);
  CHECK(std::isnan(run.column("lr")->at(2)));
  CHECK(std::isnan(run.column("grad_norm")->at(0)));
  CHECK(run.column("grad_norm")->at(2) == 7);
  CHECK(run.column("note") == nullptr);

  // Killed before its first checkpoint, a run starts at its first step again and says nothing of it.
  scratch.put("again.jsonl",
              "{\"step\":10,\"loss\":5}\n{\"step\":20,\"loss\":4}\n{\"step\":10,\"loss\":6}\n");
  CHECK(mttt::read_metrics(scratch / "again.jsonl", "b").steps == std::vector<double>{10});
  CHECK(mttt::read_metrics(scratch / "again.jsonl", "b").column("loss")->at(0) == 6);
  scratch.put("empty.jsonl", "");
  CHECK(mttt::read_metrics(scratch / "empty.jsonl", "c").steps.empty());
}

TEST_CASE("metrics that are none are refused with the line", "[io]") {
  Scratch scratch;
  const auto refused = [&](const std::string& text, const std::string& words) {
    const auto path = scratch.put("bad.jsonl", text);
    check_refused([&] { mttt::read_metrics(path, "x"); }, words);
  };
  refused("{\"step\":1,\"loss\":2}\nnot json\n{\"step\":2,\"loss\":2}\n", "line 2, 'not json'");
  refused("{\"step\":1,\"loss\":1e999}\n", "line 1");
  refused("[1,2]\n", "one JSON object a line");
  refused("{\"step\":\"one\"}\n", "a number as step");
  refused("{\"step\":1,\"loss\":\"low\"}\n", "a number, or null for NaN, as loss");
  refused("{\"resumed_at\":null}\n", "a number as resumed_at");
  refused("RIFF\x01\x02\n", "metrics.jsonl that a training run wrote");
  check_refused([&] { mttt::read_metrics(scratch / "none", "x"); }, "no such file");
}

TEST_CASE("names and files of the command line", "[io]") {
  CHECK(mttt::split_named("--run", "with TTT=a/b=c.jsonl") ==
        std::pair<std::string, std::string>("with TTT", "a/b=c.jsonl"));
  for (const char* wrong : {"", "=", "name", "name=", "=file"})
    check_refused([&] { mttt::split_named("--audio", wrong); }, "--audio");
}

TEST_CASE("the summary becomes a table with units, bars and comparisons", "[io]") {
  const auto table = mttt::summary_table(nlohmann::ordered_json::parse(R"({
    "stream": {"frames": 142, "ms_per_frame": {"p50": 3.117, "p99": 4.8}, "real_time_factor": 0.0391,
               "peak_memory_bytes": 412876800, "ok": true, "missing": null, "list": [], "<b>": "<i>&"},
    "training": {"with TTT": {"first_loss": 7.9, "seconds": 60},
                 "without TTT": {"first_loss": 7.8, "seconds": 50}},
    "contribution_of_ttt": {"gate_opening": {"layer 0": 0.05, "layer 1": 0.1},
                            "share": {"layer 0": 0.2, "layer 1": 0.1}},
    "counts": [1, 2, null, -4],
    "layers": [{"layer": 3, "alpha": 0.25}, {"layer": 5, "beta": 0.5}],
    "deep": {"er": {"and_deeper_ms": 1.5}}
  })"));
  for (const char* part :
       {">3.117 ms<", ">4.8 ms<", ">0.0391<", ">393.8 MiB<", ">peak memory<", ">yes<", ">\u2013<", ">none<",
        "&lt;b&gt;", "&lt;i&gt;&amp;", ">stream \u00b7 ms per frame<", ">with TTT<", ">first loss<", ">60 s<",
        ">contribution of TTT \u00b7 gate opening<", ">0.25<", ">deep \u00b7 er<", ">and deeper<",
        ">1.5 ms<"}) {
    INFO(part);
    CHECK(has(table, part));
  }
  CHECK(count(table, "class=\"bar\"") == 8);
  CHECK(count(table, "width:100.0%") == 3);  // the largest of each group
  CHECK(count(table, "width:50.0%") == 3);   // 0.05 of 0.1, 0.1 of 0.2, 2 of -4
  CHECK(count(table, "width:0.0%") == 1);    // null
  CHECK(count(table, "<table") == count(table, "</table>"));
  CHECK(count(table, "<tr") == count(table, "</tr>"));
  CHECK(count(table, ">first loss<") == 1);
  CHECK(!has(table, "<i>&"));

  nlohmann::ordered_json many;
  for (int i = 0; i < 100; ++i) many["losses"].push_back(i);
  CHECK(has(mttt::summary_table(many), "100 values from 0 to 99, mean 49.5"));
  CHECK(mttt::summary_table(nlohmann::ordered_json::object()) == "<table></table>");
}

TEST_CASE("a summary that is none is refused", "[io]") {
  Scratch scratch;
  check_refused([&] { mttt::read_summary(scratch.put("a.json", "{\"half\": ")); }, "'{\"half\": '");
  check_refused([&] { mttt::read_summary(scratch.put("a.json", "[1]")); }, "JSON that is no object");
  check_refused([&] { mttt::read_summary(scratch.put("a.json", "")); }, "written to its end");
  check_refused([&] { mttt::read_summary(scratch / "none.json"); }, "no such file");
  CHECK(mttt::read_summary(scratch.put("a.json", "{\"b\":1,\"a\":2}")).begin().key() ==
        "b");  // its own order
}

TEST_CASE("the page shows everything, safely, and asks nothing of a network", "[io]") {
  Report report{"A <title>", {"The codec is untrained: <noise>.", "Second note."}};
  report.runs = {run("with TTT", 200), run("<script>alert(1)</script>", 100, 4)};
  report.sounds = {sound("input", 1000), sound("reply & more", 1000)};
  report.transcript = "one <two> & three";
  report.summary = nlohmann::ordered_json::parse(
      R"({"stream":{"ms_per_frame":{"p50":1.5,"p99":2.5},"real_time_factor":0.02}})");
  const std::string page = mttt::report_html(report);

  for (const char* part :
       {"<title>A &lt;title&gt;</title>", "untrained: &lt;noise&gt;.", "with TTT",
        "&lt;script&gt;alert(1)&lt;/script&gt;", "reply &amp; more", "one &lt;two&gt; &amp; three",
        "8.00 \u2192 3.02", "1.5 ms", "2.5 ms", ">Learning rate<", ">Gradient norm, before clipping<",
        ">text loss, log scale<", ">frames per second<", "prefers-color-scheme:dark", "width=device-width"}) {
    INFO(part);
    CHECK(has(page, part));
  }
  for (const char* part : {"http://", "https://", "<script", "<link", "@import", "url(", "<i>"}) {
    INFO(part);
    CHECK(!has(page, part));
  }
  CHECK(count(page, "<audio") == 2);
  CHECK(count(page, "data:audio/wav;base64,") == 2);
  CHECK(count(page, "data:image/png;base64,") == 2);
  CHECK(count(page, "<svg") == count(page, "</svg>"));
  CHECK(count(page, "<section") == count(page, "</section>"));
  CHECK(count(page, "<path class=\"raw\"") ==
        8);  // both runs: loss, gradient norm, text loss, frames a second
  CHECK(page.find("Second note.") < page.find("<h2>Training"));
  CHECK(page.size() < 6'000'000);
}

TEST_CASE("sounds that would make the page too big are named but not embedded", "[io]") {
  Report report{"t"};
  report.sounds = {sound("a", 2'500'000), sound("b", 3'000'001), sound("c", 1'600'000),
                   sound("d", 1'400'000)};
  report.sounds.push_back({"e", "e.aiff", std::vector<float>(10), 8000, 2, "x"});
  const std::string page = mttt::report_html(report);
  CHECK(count(page, "<audio") == 2);  // a, and d, which still fits beside it
  CHECK(count(page, "would make this page too big") == 2);
  CHECK(has(page, "browsers do not play this kind of file"));
  CHECK(has(page, "peak silence"));
  CHECK(page.size() < 6'000'000);
}

TEST_CASE("runs without a step, with one and with NaN do not break the page", "[io]") {
  Report report{"t"};
  report.runs = {Metrics{"fresh", {}, {}}, run("single", 1), run("broken", 50)};
  report.runs[2].columns["loss"][20] = NAN;
  report.transcript = " \n";
  const std::string page = mttt::report_html(report);
  CHECK(has(page, "\u201cfresh\u201d has not logged a step."));
  CHECK(has(page, "the loss of 1 logged step(s) is missing or not a number"));
  CHECK(has(page, "fresh (no values)"));
  CHECK(has(page, "The reply has no words."));
  CHECK(!has(page, "nan%"));
  CHECK(!has(page, "Mnan"));
  CHECK(!has(page, "Lnan"));

  report = {"t"};
  report.runs = {Metrics{"fresh", {}, {}}};
  CHECK(has(mttt::report_html(report), "has not logged a step"));
  check_refused([] { mttt::report_html({"t"}); }, "nothing to show");
}
