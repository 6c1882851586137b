// The mel spectrogram of a recording, as a picture needs it: a fixed number of columns, levels in dB.
//
// Formula: Hann window of 32 ms or more (a power of two), power of its Fourier transform, mean over the bins
//          of a mel band (math/mel.hpp) and over the windows of a column, 10 log10.
// Shapes:  samples (frames); level (bands, columns), row 0 holds the highest band.
// Units:   Hz, seconds; dB relative to a sine of amplitude 1, never below `silence`.
// Errors:  no samples, or a rate below 1.
// Not supported: several channels; reconstruction of the sound.
// Source:  none.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <complex>
#include <cstddef>
#include <numbers>
#include <span>
#include <string>
#include <unsupported/Eigen/FFT>
#include <vector>

#include "mttt/core/error.hpp"
#include "mttt/math/mel.hpp"

namespace mttt {

struct Spectrogram {
  static constexpr float silence = -120;  // dB; quieter than one step of 16 bits

  std::size_t bands, columns;
  std::vector<float> level;  // (bands, columns)
  double seconds, top_hertz;

  float peak() const { return *std::max_element(level.begin(), level.end()); }
};

namespace detail {

/// Powers of single windows: bin k of `power` is at k * sample_rate / size.
class PowerSpectrum {
 public:
  explicit PowerSpectrum(std::size_t size) : window_(size), frame_(size) {
    double sum = 0;
    for (std::size_t i = 0; i < size; ++i) {
      const double turn = 2 * std::numbers::pi * (static_cast<double>(i) + 0.5) / static_cast<double>(size);
      sum += window_[i] = static_cast<float>(0.5 - 0.5 * std::cos(turn));
    }
    scale_ = static_cast<float>(4 / (sum * sum));  // a sine of amplitude 1 has power 1
    fft_.SetFlag(Eigen::FFT<float>::HalfSpectrum);
  }

  /// Adds the power of the window centred at `centre`; beyond its ends the recording is silent.
  void add(std::span<const float> samples, std::ptrdiff_t centre, std::span<float> power) {
    const auto size = static_cast<std::ptrdiff_t>(frame_.size()), all = std::ssize(samples);
    for (std::ptrdiff_t i = 0; i < size; ++i) {
      const std::ptrdiff_t at = centre - size / 2 + i;
      const auto j = static_cast<std::size_t>(i);
      frame_[j] = at >= 0 && at < all ? window_[j] * samples[static_cast<std::size_t>(at)] : 0;
    }
    fft_.fwd(spectrum_, frame_);
    for (std::size_t k = 0; k < power.size(); ++k) power[k] += scale_ * std::norm(spectrum_[k]);
  }

 private:
  std::vector<float> window_, frame_;
  std::vector<std::complex<float>> spectrum_;
  float scale_ = 1;
  Eigen::FFT<float> fft_;
};

/// The mean of `power` between two places, in bins; a bin reaches half a bin to both sides.
inline double mean_between(std::span<const float> power, double from, double to) {
  double sum = 0;
  const double last = static_cast<double>(power.size()) - 0.5;
  from = std::clamp(from, -0.5, last);
  to = std::clamp(to, -0.5, last);
  for (auto k = static_cast<std::size_t>(std::floor(from + 0.5));
       k < power.size() && static_cast<double>(k) - 0.5 < to; ++k) {
    const double bin = static_cast<double>(k);
    sum += power[k] * (std::min(to, bin + 0.5) - std::max(from, bin - 0.5));
  }
  return to > from ? sum / (to - from) : 0;
}

}  // namespace detail

inline Spectrogram mel_spectrogram(std::span<const float> samples, int sample_rate, std::size_t bands = 96,
                                   std::size_t most_columns = 900) {
  if (samples.empty() || sample_rate < 1 || bands < 1 || most_columns < 1)
    fail("mel_spectrogram", "no samples, no rate or no picture", "at least one of each",
         "check the recording");
  const std::size_t size =
      std::bit_ceil(std::max<std::size_t>(16, static_cast<std::size_t>(0.032 * sample_rate)));
  const std::size_t columns = std::clamp<std::size_t>(samples.size() / (size / 8), 1, most_columns);
  const double wide = static_cast<double>(samples.size()) / static_cast<double>(columns);
  const auto windows =
      static_cast<std::size_t>(std::ceil(wide / (static_cast<double>(size) / 2)));  // a column

  Spectrogram out{bands, columns, std::vector<float>(bands * columns),
                  static_cast<double>(samples.size()) / sample_rate, sample_rate / 2.0};
  detail::PowerSpectrum spectrum(size);
  std::vector<float> power(size / 2 + 1);
  const double bin = static_cast<double>(sample_rate) / static_cast<double>(size);  // Hz
  const double band = mel_of_hertz(out.top_hertz) / static_cast<double>(bands);     // mel
  for (std::size_t column = 0; column < columns; ++column) {
    std::fill(power.begin(), power.end(), 0.0f);
    for (std::size_t w = 0; w < windows; ++w) {
      const double within = (static_cast<double>(w) + 0.5) / static_cast<double>(windows);
      spectrum.add(samples, static_cast<std::ptrdiff_t>((static_cast<double>(column) + within) * wide),
                   power);
    }
    for (std::size_t b = 0; b < bands; ++b) {
      const double low = hertz_of_mel(band * static_cast<double>(b)) / bin;
      const double high = hertz_of_mel(band * static_cast<double>(b + 1)) / bin;
      const double mean = detail::mean_between(power, low, high) / static_cast<double>(windows);
      const double level = 10 * std::log10(std::max(mean, 1e-30));
      out.level[(bands - 1 - b) * columns + column] =
          std::max(static_cast<float>(level), Spectrogram::silence);
    }
  }
  return out;
}

}  // namespace mttt
