// How good a codec sounds, in numbers, beside Opus: what it makes of held-out recordings of one voice.
//
//   bench_codec_quality --codec mimi.safetensors held-out/*.wav
//
// Beside this program lies `encode`; opusenc, opusdec (opus-tools) and pocketsphinx_continuous with its English
// model are called by name. Recordings are best spoken English, a few seconds each.
//
// Formula: SNR = 10 log10(sum x^2 / sum (y - x)^2), of all recordings together.
//          Mel distance: Hann windows of 1024 samples, unit energy, every 256; 80 triangles evenly on the mel
//          scale from 0 to 12 kHz; mean over recordings, windows and bands of |l(y) - l(x)|, l = log10 max(1e-3, M).
//          Word error rate: (substitutions + deletions + insertions) / words, of what pocketsphinx hears in
//          the output against what it hears in the input, at 16 kHz: an input it mishears counts as said so.
// Shapes:  none.
// Units:   dB; log10 of magnitude; percent; kbit/s as opusenc is asked for (of speech at these rates it codes a
//          band of 4 or 6 kHz); times real time on one core, encoding and decoding.
// Errors:  tools that are not there.
// Not supported: listening tests.
// Source:  Kumar et al., "High-fidelity audio compression with improved RVQGAN" (2023): distances of mels.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/io/audio.hpp"
#include "mttt/train/spectral_loss.hpp"

namespace {
using namespace mttt;
namespace fs = std::filesystem;
constexpr int rate = 24000;
using Words = std::vector<std::string>;
using Sound = std::vector<float>;

std::string in_quotes(const fs::path& path) {
  std::string text = "'";
  for (const char c : path.string()) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}
/// What a command prints.
std::string output_of(const std::string& command) {
  FILE* pipe = ::popen(command.c_str(), "r");
  std::string text;
  char part[4096];
  for (std::size_t n; pipe != nullptr && (n = std::fread(part, 1, sizeof part, pipe)) > 0;)
    text.append(part, n);
  if (pipe == nullptr || ::pclose(pipe) != 0)
    fail(command, "an error", "a program that ends well",
         "install opus-tools, pocketsphinx, pocketsphinx-en-us");
  return text;
}

Sound read(const fs::path& path) { return resample(to_mono(read_audio(path)), rate).samples; }

class MelDistance {
 public:
  void add(const Sound& x, const Sound& y) {
    const auto n = static_cast<Index>(std::min(x.size(), y.size()));
    if (n < window) return;
    const Index frames = (n - window) / hop + 1;
    const auto a = bands(x, frames), b = bands(y, frames);
    for (std::size_t i = 0; i < a.size(); ++i) sum_ += std::abs(a[i] - b[i]);
    count_ += static_cast<double>(a.size());
  }
  double mean() const { return sum_ / count_; }

 private:
  static constexpr Index window = 1024, hop = 256, bins = window / 2 + 1, mels = 80;

  std::vector<double> bands(const Sound& x, Index frames) {
    const auto scope = be_.scope();
    const auto spectrum = be_.make<float, dyn, 2 * bins>(frames);
    const auto magnitude = be_.make<float, dyn, bins>(frames);
    const auto mel = be_.make<float, dyn, mels>(frames);
    be_.matmul(Matrix<const float>{x.data(), frames, window, hop},
               Matrix<const float>{basis_.data(), window, 2 * bins, 2 * bins}, spectrum.matrix());
    for (Index i = 0; i < frames * bins; ++i) {
      const float* parts = spectrum.data() + i / bins * 2 * bins + i % bins;
      magnitude.data()[i] = std::hypot(parts[0], parts[bins]);
    }
    be_.matmul(magnitude.matrix(), Matrix<const float>{bank_.data(), bins, mels, mels}, mel.matrix());
    std::vector<double> logs(static_cast<std::size_t>(mel.size()));
    for (std::size_t i = 0; i < logs.size(); ++i)
      logs[i] = std::log10(std::max(1e-3, static_cast<double>(mel.data()[i])));
    return logs;
  }
  static std::vector<float> narrow(const std::vector<double>& wide) { return {wide.begin(), wide.end()}; }

  Cpu<float> be_;
  std::vector<float> basis_ = narrow(detail::dft_basis(window)),
                     bank_ = narrow(detail::mel_bank(window, mels, rate));
  double sum_ = 0, count_ = 0;
};

/// The fewest words to change, leave out and put in.
std::size_t errors(const Words& expected, const Words& got) {
  std::vector<std::size_t> row(got.size() + 1);
  for (std::size_t j = 0; j < row.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= expected.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j < row.size(); ++j) {
      const std::size_t changed = diagonal + (expected[i - 1] != got[j - 1]);
      diagonal = row[j];
      row[j] = std::min({changed, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

struct Bench {
  fs::path folder = fs::temp_directory_path() / ("codec_quality_" + std::to_string(::getpid()));
  std::vector<fs::path> inputs;  // at 24 kHz, one voice
  std::vector<Sound> sounds;
  std::vector<Words> texts;

  explicit Bench(const std::vector<fs::path>& recordings) {
    fs::create_directories(folder);
    for (std::size_t i = 0; i < recordings.size(); ++i) {
      inputs.push_back(folder / (std::to_string(i) + ".wav"));
      sounds.push_back(read(recordings[i]));
      write_audio(inputs.back(), Audio{sounds.back(), 1, rate});
      texts.push_back(heard(sounds.back()));
    }
  }
  ~Bench() {
    std::error_code ignored;
    fs::remove_all(folder, ignored);
  }

  Words heard(const Sound& sound) const {
    const auto path = folder / "heard.wav";
    write_audio(path, resample(Audio{sound, 1, rate}, 16000));
    const std::string text =
        output_of("pocketsphinx_continuous -infile " + in_quotes(path) + " -logfn /dev/null 2>/dev/null");
    Words words;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find_first_of(" \n", at), text.size());
      if (end > at) words.push_back(text.substr(at, end - at));
      at = end + 1;
    }
    return words;
  }

  /// `output` gives the file that input i became.
  template <class F>
  void row(const std::string& what, const std::string& speed, F&& output) {
    MelDistance mels;
    double signal = 0, error = 0;
    std::size_t wrong = 0, words = 0;
    for (std::size_t i = 0; i < sounds.size(); ++i) {
      Sound y = read(output(i));
      y.resize(sounds[i].size(), 0.0f);
      for (std::size_t t = 0; t < y.size(); ++t) {
        const double x = static_cast<double>(sounds[i][t]), away = static_cast<double>(y[t]) - x;
        signal += x * x, error += away * away;
      }
      mels.add(sounds[i], y);
      wrong += errors(texts[i], heard(y)), words += texts[i].size();
    }
    std::printf("| %s | %.2f | %.3f | %.1f | %s |\n", what.c_str(),
                10 * std::log10(signal / std::max(1e-9, error)), mels.mean(),
                100.0 * static_cast<double>(wrong) / static_cast<double>(std::max<std::size_t>(1, words)),
                speed.c_str());
    std::fflush(stdout);
  }
};

}  // namespace

int main(int argc, char** argv) {
  try {
    std::vector<std::string> codecs;
    std::vector<fs::path> recordings;
    for (int i = 1; i < argc; ++i) {
      if (std::string(argv[i]) == "--codec" && i + 1 < argc) {
        codecs.emplace_back(argv[++i]);
      } else {
        recordings.emplace_back(argv[i]);
      }
    }
    if (codecs.empty() || recordings.empty()) {
      std::fprintf(stderr, "usage: %s --codec CODEC.safetensors [--codec ...] RECORDING...\n", argv[0]);
      return 2;
    }
    Bench bench(recordings);
    double seconds = 0;
    std::size_t words = 0;
    for (const auto& sound : bench.sounds) seconds += static_cast<double>(sound.size()) / rate;
    for (const auto& text : bench.texts) words += text.size();
    std::printf("%zu recordings, %.0f s, %zu words as heard\n\n", recordings.size(), seconds, words);
    std::printf(
        "| | SNR, dB | mel distance | words wrong, %% | times real time, one core "
        "|\n|---|---|---|---|---|\n");
    bench.row("nothing done", "", [&](std::size_t i) { return bench.inputs[i]; });
    const fs::path encode = fs::path(argv[0]).parent_path() / "encode";
    for (const auto& codec : codecs) {
      std::string command = "OMP_NUM_THREADS=1 " + in_quotes(encode) + " --codec " + in_quotes(codec) +
                            " --reply --output " + in_quotes(bench.folder / "back");
      for (const auto& input : bench.inputs) command += " " + in_quotes(input);
      const std::string said = output_of(command);
      const std::size_t end = said.rfind(" times"), begin = said.rfind(' ', end - 1) + 1;
      bench.row(codec, said.substr(begin, end - begin),
                [&](std::size_t i) { return bench.folder / "back" / bench.inputs[i].filename(); });
    }
    for (const char* bits : {"6", "12"}) {
      bench.row("Opus, " + std::string(bits) + " kbit/s", "", [&](std::size_t i) {
        const auto coded = bench.folder / "coded.opus", back = bench.folder / "opus.wav";
        output_of("opusenc --quiet --speech --bitrate " + std::string(bits) + " " +
                  in_quotes(bench.inputs[i]) + " " + in_quotes(coded) +
                  " 2>&1 && opusdec --quiet --rate 24000 " + in_quotes(coded) + " " + in_quotes(back) +
                  " 2>&1");
        return back;
      });
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
