// SpectralLoss: how far one sound is from another in mel spectrograms of many resolutions, with its gradient.
//
// Formula: for each window w, every w / 4 samples: S = |DFT of the Hann window's samples| / sqrt(sum of the
//          window's squares), M = S times a bank of triangles that lie evenly on the mel scale, none narrower
//          than a bin to either side. d = M(y) - M(x), l = log10(floor + M(y)) - log10(floor + M(x));
//          loss = mean over windows of mean over bands and times of linear |d| + log_l1 |l| + log_l2 l^2.
//          |DFT| is sqrt(re^2 + im^2 + 1e-12): it has a gradient, 0, in silence too. The DFT is a product of
//          the overlapping windows, as they lie, with a basis: every backend does that.
// Shapes:  x, y, dy (B, S); only windows that are whole count: S >= w, else the window is left out. w / 32 *
//          5 bands of w.
// Units:   samples; the sound is within [-1, 1], where noise of deviation s has S of about s. `floor` is in
//          S.
// Errors:  windows that no multiple of 4 are, sounds shorter than every window, of different shapes.
// Not supported: complex spectra, padding at the ends; storage in bf16.
// Source:  Defossez et al., "High fidelity neural audio compression" (2022), eq. 2 and audiocraft's
//          MultiScaleMelSpectrogramLoss: linear L1, squares of log10; Kumar et al., "High-fidelity audio
//          compression with improved RVQGAN" (2023): L1 of log10, windows and numbers of bands.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "mttt/backend/backend.hpp"
#include "mttt/core/memory_use.hpp"
#include "mttt/math/mel.hpp"
#include "mttt/nn/elementwise.hpp"
#include "mttt/nn/total.hpp"

namespace mttt {

struct SpectralConfig {
  std::vector<Index> windows{32, 64, 128, 256, 512, 1024, 2048};
  double linear = 1, log_l1 = 1, log_l2 = 1;
  /// -60 dB: what is quieter a codec may do as it likes. The papers take 1e-5, below a step of 16 bits.
  double floor = 1e-3;
};

namespace detail {

/// magnitude[r, k] from spectrum[r], its `bins` cosine parts and then its `bins` sine parts.
template <class T>
struct Magnitudes {
  const T* spectrum;
  T* magnitude;
  Index bins;
  MTTT_HD void operator()(Index i) const {
    const Index row = quotient(i, bins);
    const T* parts = spectrum + row * bins + i;
    magnitude[i] = std::sqrt(parts[0] * parts[0] + parts[bins] * parts[bins] + T(1e-12));
  }
};

/// Its adjoint, in the place of the spectrum.
template <class T>
struct MagnitudesBackward {
  const T *magnitude, *dmagnitude;
  T* spectrum;
  Index bins;
  MTTT_HD void operator()(Index i) const {
    const Index row = quotient(i, bins);
    T* parts = spectrum + row * bins + i;
    const T scale = dmagnitude[i] / magnitude[i];
    parts[0] *= scale;
    parts[bins] *= scale;
  }
};

/// parts[p] = the loss of elements [p * part, (p + 1) * part), and its gradient in the place of `y`.
template <class T>
struct BandLoss {
  const T* x;
  T* y;
  double* parts;
  Index n;
  T linear, log_l1, log_l2, floor, scale;  // of the gradient
  static constexpr Index part = 1 << 12;
  template <class Team>
  MTTT_HD void operator()(Team team, Index p) const {
    const Index first = p * part;
    const auto all = *this;
    const double loss = team.template sum<double>(part < n - first ? part : n - first, [=](Index i) {
      const T per_ln = T(0.43429448190325183), target = all.x[first + i], given = all.y[first + i];
      const T d = given - target, l = per_ln * (std::log(all.floor + given) - std::log(all.floor + target));
      const T dl = per_ln / (all.floor + given);
      all.y[first + i] =
          all.scale * (all.linear * sign(d) + (all.log_l1 * sign(l) + 2 * all.log_l2 * l) * dl);
      return static_cast<double>(all.linear * std::abs(d) + all.log_l1 * std::abs(l) + all.log_l2 * l * l);
    });
    if (team.leader()) parts[p] = loss;
  }
  MTTT_HD static T sign(T x) { return static_cast<T>((x > 0) - (x < 0)); }
};

/// dy[b, s] += the sum of what the windows that sample s lies in have of it.
template <class T>
struct AddWindowGradients {
  const T* windows;                   // (B, count, w)
  T* dy;                              // (B, samples)
  Index samples, count, window, hop;  // of a quarter window
  MTTT_HD void operator()(Index i) const {
    const Index b = quotient(i, samples), s = i - b * samples, last = quotient(s, hop);
    T total = 0;
    for (Index t = last < 4 ? 0 : last - 3; t <= last && t < count; ++t)
      total += windows[(b * count + t) * window + s - t * hop];
    dy[i] += total;
  }
};

/// Columns of the bins of a window: the next multiple of 4, so that rows lie evenly; the last ones are empty.
inline Index bin_columns(Index window) { return (window / 2 + 4) / 4 * 4; }

/// cos and sin of every bin under a Hann window of unit energy, (w, 2 columns): as many as bins, or more.
inline std::vector<double> dft_basis(Index window, Index columns = 0) {
  const Index bins = window / 2 + 1;
  columns = std::max(columns, bins);
  const auto hann = [&](Index i) {
    return 0.5 - 0.5 * std::cos(2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(window));
  };
  double energy = 0;
  for (Index i = 0; i < window; ++i) energy += hann(i) * hann(i);
  std::vector<double> basis(static_cast<std::size_t>(window * 2 * columns));
  for (Index i = 0; i < window; ++i) {
    double* row = basis.data() + i * 2 * columns;
    for (Index k = 0; k < bins; ++k) {
      const double turn =
          2 * std::numbers::pi * static_cast<double>(i * k % window) / static_cast<double>(window);
      row[k] = hann(i) / std::sqrt(energy) * std::cos(turn);
      row[columns + k] = hann(i) / std::sqrt(energy) * std::sin(turn);
    }
  }
  return basis;
}

/// Triangles of height 1 from one band's centre to the next one's, (columns, bands): as many as bins, or more.
inline std::vector<double> mel_bank(Index window, Index bands, double sample_rate, Index columns = 0) {
  const Index bins = window / 2 + 1;
  const double bin = sample_rate / static_cast<double>(window);  // Hz
  const double band = mel_of_hertz(sample_rate / 2) / static_cast<double>(bands + 1);
  std::vector<double> bank(static_cast<std::size_t>(std::max(columns, bins) * bands));
  for (Index m = 0; m < bands; ++m) {
    const double centre = hertz_of_mel(band * static_cast<double>(m + 1));
    const double below = std::max(bin, centre - hertz_of_mel(band * static_cast<double>(m)));
    const double above = std::max(bin, hertz_of_mel(band * static_cast<double>(m + 2)) - centre);
    for (Index k = 0; k < bins; ++k) {
      const double away = bin * static_cast<double>(k) - centre;
      bank[static_cast<std::size_t>(k * bands + m)] =
          std::max(0.0, 1 - std::abs(away) / (away < 0 ? below : above));
    }
  }
  return bank;
}

}  // namespace detail

/// Owns the bases and banks of filters, in the backend's memory. It refers to the backend.
template <class B>
class SpectralLoss {
 public:
  using T = typename B::Scalar;
  static_assert(std::is_floating_point_v<T>, "mttt: SpectralLoss computes in float or double");

  SpectralLoss(B& be, double sample_rate, SpectralConfig config = {}) : be_(be), config_(std::move(config)) {
    for (const Index window : config_.windows) {
      if (window < 8 || window % 4 != 0) {
        fail("SpectralLoss", "a window of " + std::to_string(window) + " samples", "multiples of 4, from 8",
             "take powers of 2");
      }
      const Index bins = detail::bin_columns(window), bands = std::max<Index>(3, window * 5 / 32);
      scales_.push_back({window, bins, bands, upload(detail::dft_basis(window, bins)),
                         upload(detail::mel_bank(window, bands, sample_rate, bins))});
    }
  }

  /// Queues *total += weight * loss, and dy += its gradient where dy is not empty. total is in the backend's
  /// memory.
  void queue(Tensor<const T, dyn, dyn> x, Tensor<const T, dyn, dyn> y, double weight, double* total,
             Tensor<T, dyn, dyn> dy = {}) {
    if (x.extents() != y.extents() || (!dy.empty() && dy.extents() != y.extents()))
      fail("SpectralLoss", "sounds of different shapes", "equal ones", "compare what goes in and comes out");
    Index used = 0;
    for (const Scale& scale : scales_) used += scale.window <= x.extent(1);
    if (used == 0) {
      fail("SpectralLoss", std::to_string(x.extent(1)) + " samples", "as many as the shortest window",
           "take longer segments");
    }
    for (const Scale& scale : scales_)
      if (scale.window <= x.extent(1)) queue(scale, x, y, weight / static_cast<double>(used), total, dy);
  }

  /// Operations of the products of one sound and one second; a gradient takes one more.
  double flops(double sample_rate) const {
    double sum = 0;
    for (const Scale& s : scales_)
      sum += 4 * sample_rate / static_cast<double>(s.window) *
             static_cast<double>(2 * 2 * s.bins * s.window + 2 * s.bins * s.bands);
    return sum;
  }

 private:
  struct Scale {
    Index window, bins, bands;
    typename B::Memory basis, bank;
  };

  typename B::Memory upload(const std::vector<double>& values) {
    const std::vector<T> narrow(values.begin(), values.end());
    const auto n = static_cast<Index>(narrow.size());
    typename B::Memory memory(be_, n * static_cast<Index>(sizeof(T)), MemoryUse::other);
    be_.to_device(narrow.data(), static_cast<T*>(memory.data()), n);
    return memory;
  }
  static Matrix<const T> plane(const typename B::Memory& memory, Index rows, Index cols) {
    return {static_cast<const T*>(memory.data()), rows, cols, cols};
  }

  /// bands (B * F, bands) of x; the spectrum and the magnitudes that they come from.
  void transform(const Scale& s, Tensor<const T, dyn, dyn> x, T* spectrum, T* magnitude, T* bands) {
    const Index hop = s.window / 4, sessions = x.extent(0), count = (x.extent(1) - s.window) / hop + 1;
    be_.matmul_grid(sessions, 1, MatrixGrid<const T>{{x.data(), count, s.window, hop}, x.extent(1), 0},
                    MatrixGrid<const T>{plane(s.basis, s.window, 2 * s.bins), 0, 0},
                    MatrixGrid<T>{{spectrum, count, 2 * s.bins, 2 * s.bins}, count * 2 * s.bins, 0});
    const Index rows = sessions * count;
    be_.for_each(rows * s.bins, detail::Magnitudes<T>{spectrum, magnitude, s.bins});
    be_.matmul(Matrix<const T>{magnitude, rows, s.bins, s.bins}, plane(s.bank, s.bins, s.bands),
               Matrix<T>{bands, rows, s.bands, s.bands});
  }

  void queue(const Scale& s, Tensor<const T, dyn, dyn> x, Tensor<const T, dyn, dyn> y, double weight,
             double* total, Tensor<T, dyn, dyn> dy) {
    const auto scope = be_.scope();
    const Index hop = s.window / 4, count = (x.extent(1) - s.window) / hop + 1, rows = x.extent(0) * count,
                n = rows * s.bands;
    const auto make = [&](Index columns) { return be_.template make<T, dyn, dyn>(rows, columns); };
    const auto spectrum = make(2 * s.bins), magnitude = make(s.bins), target = make(s.bands),
               bands = make(s.bands);
    transform(s, x, spectrum.data(), magnitude.data(), target.data());
    transform(s, y, spectrum.data(), magnitude.data(), bands.data());

    using Loss = detail::BandLoss<T>;
    const Index parts = (n + Loss::part - 1) / Loss::part;
    const auto sums = be_.template make<double, dyn>(parts);
    const double scale = weight / static_cast<double>(n);
    const auto as = [](double value) { return static_cast<T>(value); };
    be_.rows(parts,
             Loss{target.data(), bands.data(), sums.data(), n, as(config_.linear), as(config_.log_l1),
                  as(config_.log_l2), as(config_.floor), as(scale)},
             0, 32 * Loss::part);
    add_total(be_, sums.data(), parts, scale, total);
    if (dy.empty()) return;

    const auto dmagnitude = make(s.bins), dwindows = make(s.window);
    be_.matmul(bands.matrix(), plane(s.bank, s.bins, s.bands).t(), dmagnitude.matrix());
    be_.for_each(rows * s.bins,
                 detail::MagnitudesBackward<T>{magnitude.data(), dmagnitude.data(), spectrum.data(), s.bins});
    be_.matmul(spectrum.matrix(), plane(s.basis, s.window, 2 * s.bins).t(), dwindows.matrix());
    be_.for_each(dy.size(), detail::AddWindowGradients<T>{dwindows.data(), dy.data(), dy.extent(1), count,
                                                          s.window, hop});
  }

  B& be_;
  SpectralConfig config_;
  std::vector<Scale> scales_;
};

}  // namespace mttt
