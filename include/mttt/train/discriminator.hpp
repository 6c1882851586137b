// SpectralDiscriminator: tells sounds from their replies by complex spectra of several windows; the loss that
// it learns by, and the losses and the gradient that a codec has of it.
//
// Formula: for each window w, every w / 4 samples: DFT of the Hann window's samples, of unit energy, real and
//          imaginary part as two channels; convolutions over time x band, each but the last followed by
//          max(h, 0.2 h): 2 -> n by 3 x 9; three n -> n by 3 x 9, every second band, 1, 2, 4 frames apart;
//          n -> n by 3 x 3: these are the features h_l; n -> 1 by 3 x 3: the logits D_w.
//          Means over windows, features and what they have: discriminator = mean max(0, 1 - D(x)) +
//          mean max(0, 1 + D(y)); adversarial = -mean D(y); features = mean |h_l(y) - h_l(x)| / mean |h_l(x)|,
//          where x counts as given.
//          Both gradients are taken at the same weights, from one forward pass of x and y.
// Shapes:  x, y, dy (B, S), sessions `stride` apart; windows longer than S are left out. Planes are (2 B,
//          frames, w / 2 + 2, channels): sounds, then replies.
// Units:   samples, frames of w / 4.
// Errors:  windows that are no multiple of 16; S shorter than every window.
// Not supported: spectra in bf16: they are float32 where activations are bf16.
// Source:  Defossez et al., "High fidelity neural audio compression" (2022), section 3.4 and eq. 3;
//          facebookresearch/encodec msstftd.py `DiscriminatorSTFT`; audiocraft adversarial/losses.py: the hinge
//          losses. "Moshi" (2024), section 3.3.2: the same for Mimi.
#pragma once

#include "mttt/codec/conv2d.hpp"
#include "mttt/train/spectral_loss.hpp"

namespace mttt {

struct DiscriminatorConfig {
  Index filters = 32;
  std::array<Index, 8> windows{2048, 1024, 512, 256, 128};  // zeros: no more
  constexpr std::size_t scales() const {
    std::size_t n = 0;
    while (n < windows.size() && windows[n] > 0) ++n;
    return n;
  }
};

struct AdversaryLoss {
  double discriminator = 0, adversarial = 0, features = 0;  // without weights
  double logit_real = 0, logit_fake = 0;                    // means
};

namespace detail {

/// Of a pass, in the backend's memory: what the logits say, and of each window and map of features the sum of
/// their distances and of what sounds have.
struct JudgeSums {
  double discriminator, real, fake;
  double away[8][5], level[8][5];
};

/// Sums of the losses of logits, and their gradients. A team a piece of the frames.
template <class T>
struct JudgeLogits {
  const T* logits;  // (2 n): sounds, then replies, of `slots` each frame, the last of no meaning
  T *learn, *fool;  // gradients: of the discriminator (2 n), of the codec (n); or null
  double* parts;    // (3, count): loss of the discriminator, sums of D(x), of D(y)
  Index n, slots, count;
  double learn_step, fool_step;
  static constexpr Index part = 1 << 12;
  template <class Team>
  MTTT_HD void operator()(Team team, Index p) const {
    const auto all = *this;
    const Index first = p * part, length = part < n - first ? part : n - first;
    const double loss = team.template sum<double>(length, [=](Index at) {
      const Index i = first + at;
      const bool counts = i % all.slots + 1 != all.slots;
      const double real = wide(all.logits[i]), fake = wide(all.logits[all.n + i]);
      const bool miss_real = counts && real < 1, miss_fake = counts && fake > -1;
      if (all.learn != nullptr) {
        all.learn[i] = static_cast<T>(static_cast<Wide<T>>(miss_real ? -all.learn_step : 0.0));
        all.learn[all.n + i] = static_cast<T>(static_cast<Wide<T>>(miss_fake ? all.learn_step : 0.0));
        all.fool[i] = static_cast<T>(static_cast<Wide<T>>(counts ? -all.fool_step : 0.0));
      }
      return (miss_real ? 1 - real : 0.0) + (miss_fake ? 1 + fake : 0.0);
    });
    const auto sum = [=](const T* of) {
      return team.template sum<double>(length, [=](Index at) {
        const Index i = first + at;
        return i % all.slots + 1 != all.slots ? static_cast<double>(wide(of[i])) : 0.0;
      });
    };
    const double real = sum(logits), fake = sum(logits + n);
    if (team.leader()) parts[p] = loss, parts[count + p] = real, parts[2 * count + p] = fake;
  }
};

/// Parts of sum |h(y) - h(x)| and of sum |h(x)|.
template <class T>
struct CompareFeatures {
  const T *real, *fake;
  double* parts;  // (2, count)
  Index n, count;
  static constexpr Index part = 1 << 14;
  template <class Team>
  MTTT_HD void operator()(Team team, Index p) const {
    using A = Wide<T>;
    const Index first = p * part, length = part < n - first ? part : n - first;
    const T *x = real + first, *y = fake + first;
    const double away = team.template sum<double>(
        length, [](A a, A b) { return static_cast<double>(std::abs(b - a)); }, x, y);
    const double level = team.template sum<double>(
        length, [](A a) { return static_cast<double>(std::abs(a)); }, x);
    if (team.leader()) parts[p] = away, parts[count + p] = level;
  }
};

/// The gradient before an activation: dy, plus that of the features (step / *level * sign), through the slope.
/// The last slot has none. In place; `channels` and `slots` of a frame.
template <class T, int channels>
struct FeatureGradient {
  const T *real, *y;    // y: what is differentiated; real: or null
  const double* level;  // where real is given
  T* dy;
  Index slots;
  double step, slope;
  template <class Team>
  MTTT_HD void operator()(Team team, Index frame) const {
    using A = Wide<T>;
    const Index first = frame * slots * channels, valid = (slots - 1) * channels;
    const T *given = real == nullptr ? nullptr : real + first, *out = y + first;
    T* to = dy + first;
    const A pull = given != nullptr && *level > 0 ? static_cast<A>(step / *level) : A(0);
    const A kept = static_cast<A>(slope);
    constexpr int W = lanes_of<T, channels>;
    team.for_each(slots * channels / W, [=](Index i) {
      Lanes<T, W> result{};
      if (i * W < valid) {
        const auto values = load_lanes<W>(out + i * W), above = load_lanes<W>(to + i * W),
                   reals = load_lanes<W>((given == nullptr ? out : given) + i * W);
        for (int lane = 0; lane < W; ++lane) {
          const A value = wide(values.of[lane]), away = value - wide(reals.of[lane]);
          const A d = wide(above.of[lane]) + pull * static_cast<A>((away > 0) - (away < 0));
          result.of[lane] = static_cast<T>(value > 0 ? d : kept * d);
        }
      }
      store_lanes(to + i * W, result);
    });
  }
};

/// Real and imaginary part of every bin side by side, and two zeros: (w, w / 2 + 2, 2).
inline std::vector<double> complex_basis(Index window) {
  const Index bins = window / 2 + 1;
  const auto apart = dft_basis(window);
  std::vector<double> basis(static_cast<std::size_t>(window * (2 * bins + 2)), 0.0);
  for (Index i = 0; i < window; ++i) {
    for (Index k = 0; k < bins; ++k) {
      const auto from = static_cast<std::size_t>(i * 2 * bins + k);
      const auto to = static_cast<std::size_t>(i * (2 * bins + 2) + 2 * k);
      basis[to] = apart[from];
      basis[to + 1] = -apart[from + static_cast<std::size_t>(bins)];
    }
  }
  return basis;
}

/// dy[b, s] += the sum of what the windows that sample s lies in have of it; sessions of dy lie apart.
template <class A, class T>
struct AddStridedWindows {
  const A* windows;  // (B, count, w)
  T* dy;
  Index samples, stride, count, window, hop;
  MTTT_HD void operator()(Index i) const {
    const Index b = i / samples, s = i % samples, last = s / hop;
    A total = 0;
    for (Index t = last < window / hop ? 0 : last - window / hop + 1; t <= last && t < count; ++t)
      total += windows[(b * count + t) * window + s - t * hop];
    dy[b * stride + s] += total;
  }
};

}  // namespace detail

/// Some samples of each of several sessions, `stride` apart.
template <class T>
struct Sounding {
  T* data;
  Index sessions, samples, stride;
};

template <DiscriminatorConfig C, class B>
struct SpectralDiscriminator {
  using T = typename B::Scalar;
  using A = typename B::Accum;
  static constexpr Index n = C.filters;
  static constexpr std::size_t scales = C.scales(), maps = 5;
  static constexpr double slope = 0.2;

  template <Index in, Index kernel_band, Index stride, Index dilation>
  using Layer = Conv2d<Conv2dConfig{.in = in,
                                    .out = n,
                                    .kernel_time = 3,
                                    .kernel_band = kernel_band,
                                    .stride = stride,
                                    .dilation = dilation},
                       B>;
  using Last =
      Conv2d<Conv2dConfig{.in = n, .out = 1, .kernel_time = 3, .kernel_band = 3, .activated = false}, B>;
  using Layers = std::tuple<Layer<2, 9, 1, 1>, Layer<n, 9, 2, 1>, Layer<n, 9, 2, 2>, Layer<n, 9, 2, 4>,
                            Layer<n, 3, 1, 1>>;
  template <std::size_t i>
  using LayerAt = std::tuple_element_t<i, Layers>;

  struct Scale {
    std::tuple<typename LayerAt<0>::Params, typename LayerAt<1>::Params, typename LayerAt<2>::Params,
               typename LayerAt<3>::Params, typename LayerAt<4>::Params>
        convs;
    typename Last::Params conv_post;
    static void visit(auto&& f, auto&&... p) {
      f("convs", p.convs...);
      f("conv_post", p.conv_post...);
    }
  };
  struct Params {
    std::array<Scale, scales> discriminators;
    static void visit(auto&& f, auto&&... p) { f("discriminators", p.discriminators...); }
  };
  using Sums = detail::JudgeSums;
  struct Weights {
    double discriminator = 1, adversarial = 1, features = 1;
  };

  static void init(Params& p, Rng& rng) {
    for (Scale& scale : p.discriminators) {
      std::apply(
          [&](auto&... conv) {
            each([&](auto layer, auto& c) { decltype(layer)::type::init(c, rng); }, conv...);
          },
          scale.convs);
      Last::init(scale.conv_post, rng);
    }
  }

  /// The bases of the windows, in the backend's memory.
  class Bases {
   public:
    explicit Bases(B& be) {
      for (std::size_t k = 0; k < scales; ++k) {
        if (C.windows[k] % 16 != 0)
          fail("SpectralDiscriminator", "a window of " + std::to_string(C.windows[k]) + " samples",
               "multiples of 16", "take powers of 2");
        const auto wide = detail::complex_basis(C.windows[k]);
        const std::vector<A> narrow(wide.begin(), wide.end());
        const auto count = static_cast<Index>(narrow.size());
        memory_.emplace_back(be, count * static_cast<Index>(sizeof(A)), MemoryUse::other);
        be.to_device(narrow.data(), static_cast<A*>(memory_.back().data()), count);
      }
    }
    Matrix<const A> operator[](std::size_t k) const {
      const Index w = C.windows[k];
      return {static_cast<const A*>(memory_[k].data()), w, w + 4, w + 4};
    }

   private:
    std::vector<typename B::Memory> memory_;
  };

  static Index scales_of(Index samples) {
    Index used = 0;
    for (std::size_t k = 0; k < scales; ++k) used += C.windows[k] <= samples;
    return used;
  }
  /// Multiplications of the convolutions and spectra of a second of one sound, once through.
  static double work(double sample_rate) {
    double sum = 0;
    for (std::size_t k = 0; k < scales; ++k) {
      const Index w = C.windows[k], hop = w / 4;
      Index slots = w / 2 + 2, frame = w * (w + 4);
      const auto add = [&](auto layer, const auto&) {
        frame += decltype(layer)::type::work(slots);
        slots = decltype(layer)::type::out_slots(slots);
      };
      std::apply([&](const auto&... conv) { each(add, conv...); }, decltype(Scale::convs){});
      sum += static_cast<double>(frame + Last::work(slots)) * sample_rate / static_cast<double>(hop);
    }
    return sum;
  }

  /// Queues the sums of a pass; adds weights.discriminator times the discriminator's gradient to `grad` and the
  /// weighted gradients of the codec's losses to dy, where these are given. *sums starts as zero.
  static void queue(B& be, const Params& p, const Bases& bases, Sounding<const A> x, Sounding<const A> y,
                    const Weights& weights, Sums* sums, Params* grad, A* dy) {
    const Index used = scales_of(x.samples);
    if (used == 0)
      fail("SpectralDiscriminator", std::to_string(x.samples) + " samples", "as many as the shortest window",
           "take longer segments");
    for (std::size_t k = 0; k < scales; ++k) {
      if (C.windows[k] > x.samples) continue;
      const auto scope = be.scope();
      One one{be, p.discriminators[k], bases[k], C.windows[k], 1 / static_cast<double>(used), weights};
      one.queue(x, y, sums, k, grad == nullptr ? nullptr : &grad->discriminators[k], dy);
    }
  }
  static AdversaryLoss losses(const Sums& s, Index used) {
    AdversaryLoss loss{s.discriminator, -s.fake, 0, s.real, s.fake};
    for (std::size_t k = 0; k < scales; ++k)
      for (std::size_t l = 0; l < maps; ++l)
        if (s.level[k][l] > 0)
          loss.features +=
              s.away[k][l] / s.level[k][l] / static_cast<double>(used) / static_cast<double>(maps);
    return loss;
  }

 private:
  /// f(TypeOf layer, conv) for every layer.
  template <class L>
  struct TypeOf {
    using type = L;
  };
  template <class F, class... Conv>
  static void each(F&& f, Conv&... conv) {
    each_at(std::make_index_sequence<maps>{}, f, conv...);
  }
  template <std::size_t... I, class F, class... Conv>
  static void each_at(std::index_sequence<I...>, F& f, Conv&... conv) {
    (f(TypeOf<LayerAt<I>>{}, conv), ...);
  }

  /// One window.
  struct One {
    B& be;
    const Scale& p;
    Matrix<const A> basis;
    Index window;
    double share;
    const Weights& weights;

    struct Pass {
      std::tuple<typename LayerAt<0>::Weights, typename LayerAt<1>::Weights, typename LayerAt<2>::Weights,
                 typename LayerAt<3>::Weights, typename LayerAt<4>::Weights>
          weights;
      std::tuple<typename LayerAt<0>::Saved, typename LayerAt<1>::Saved, typename LayerAt<2>::Saved,
                 typename LayerAt<3>::Saved, typename LayerAt<4>::Saved>
          saved;
      typename Last::Weights last_weights;
      typename Last::Saved last;
    };

    Index frames(Index samples) const { return (samples - window) / (window / 4) + 1; }

    void queue(Sounding<const A> x, Sounding<const A> y, Sums* sums, std::size_t k, Scale* grad, A* dy) {
      const Index sessions = x.sessions, count = frames(x.samples), slots = window / 2 + 2;
      const auto spectra = be.template make<A, dyn, dyn, dyn, 2>(2 * sessions, count, slots);
      transform(x, spectra.data());
      transform(y, spectra[sessions].data());
      Pass pass;
      const auto logits = forward<0>(spectra, pass);
      using Judge = detail::JudgeLogits<T>;
      const Index half = logits.size() / 2, pieces = (half + Judge::part - 1) / Judge::part;
      const auto learn = be.template make<T, dyn, dyn, dyn, 1>(2 * sessions, count, logits.extent(2));
      const auto fool = be.template make<T, dyn, dyn, dyn, 1>(sessions, count, logits.extent(2));
      const double mean = share / static_cast<double>(sessions * count * (logits.extent(2) - 1));
      {
        const auto scope = be.scope();
        const auto parts = be.template make<double, 3, dyn>(pieces);
        be.rows(
            pieces,
            Judge{logits.data(), grad == nullptr ? nullptr : learn.data(), fool.data(), parts.data(), half,
                  logits.extent(2), pieces, weights.discriminator * mean, weights.adversarial * mean},
            0, 8 * Judge::part);
        add_total(be, parts[0].data(), pieces, mean, &sums->discriminator);
        add_total(be, parts[1].data(), pieces, mean, &sums->real);
        add_total(be, parts[2].data(), pieces, mean, &sums->fake);
      }
      compare(std::make_index_sequence<maps>{}, pass, sessions, *sums, k);
      if (grad != nullptr) learn_from(pass, learn, *grad);
      if (dy == nullptr) return;
      const auto dspectra = be.template make<A, dyn, dyn, dyn, 2>(sessions, count, slots);
      fool_by(pass, fool, *sums, k, dspectra);
      add_to(dspectra, y, dy);
    }

    void transform(Sounding<const A> x, A* spectra) {
      const Index hop = window / 4, count = frames(x.samples), width = window + 4;
      auto full = be.template as<A>();
      full.matmul_grid(x.sessions, 1, MatrixGrid<const A>{{x.data, count, window, hop}, x.stride, 0},
                       MatrixGrid<const A>{basis, 0, 0},
                       MatrixGrid<A>{{spectra, count, width, width}, count * width, 0});
    }
    void add_to(Planes<const A, 2> dspectra, Sounding<const A> y, A* dy) {
      const auto scope = be.scope();
      const Index count = dspectra.extent(1), rows = y.sessions * count, width = window + 4;
      const auto windows = be.template make<A, dyn, dyn>(rows, window);
      auto full = be.template as<A>();
      full.matmul(Matrix<const A>{dspectra.data(), rows, width, width}, basis.t(), windows.matrix());
      be.for_each(y.sessions * y.samples,
                  detail::AddStridedWindows<A, A>{windows.data(), dy, y.samples, y.stride, count, window,
                                                  window / 4});
    }

    template <std::size_t i, class Input>
    Planes<T, 1> forward(Input x, Pass& pass) {
      const auto output = [&]<class L>(TypeOf<L>) {
        return be.template make<T, dyn, dyn, dyn, L::out>(x.extent(0), x.extent(1),
                                                          L::out_slots(x.extent(2)));
      };
      if constexpr (i == maps) {
        const auto y = output(TypeOf<Last>{});
        pass.last_weights = Last::derive(be, p.conv_post);
        Last::forward(be, p.conv_post, pass.last_weights, x, y, pass.last, slope);
        return y;
      } else {
        using L = LayerAt<i>;
        const auto y = output(TypeOf<L>{});
        const auto& conv = std::get<i>(p.convs);
        std::get<i>(pass.weights) = L::derive(be, conv);
        L::forward(be, conv, std::get<i>(pass.weights), x, y, std::get<i>(pass.saved), slope);
        return forward<i + 1>(y, pass);
      }
    }

    template <std::size_t... I>
    void compare(std::index_sequence<I...>, const Pass& pass, Index sessions, Sums& sums, std::size_t k) {
      (compare_map(std::get<I>(pass.saved).y, sessions, &sums.away[k][I], &sums.level[k][I]), ...);
    }
    void compare_map(Planes<const T, n> h, Index sessions, double* away, double* level) {
      using Compare = detail::CompareFeatures<T>;
      const auto scope = be.scope();
      const Index half = h.size() / 2, count = (half + Compare::part - 1) / Compare::part;
      const auto parts = be.template make<double, 2, dyn>(count);
      be.rows(count, Compare{h.data(), h[sessions].data(), parts.data(), half, count}, 0, 8 * Compare::part);
      add_total(be, parts[0].data(), count, 1, away);
      add_total(be, parts[1].data(), count, 1, level);
    }

    /// The gradient before layer i's activation, in its place.
    template <std::size_t i>
    void activate(const typename LayerAt<i>::Saved& saved, const T* real, const double* level,
                  Planes<T, n> dy) {
      be.rows(dy.extent(0) * dy.extent(1),
              detail::FeatureGradient<T, static_cast<int>(n)>{
                  real, saved.y.data(), level, dy.data(), dy.extent(2),
                  weights.features * share / static_cast<double>(maps), slope},
              0, 4 * dy.extent(2) * n);
    }

    void learn_from(const Pass& pass, Planes<const T, 1> dlogits, Scale& grad) {
      const auto scope = be.scope();
      const auto dy = like(std::get<maps - 1>(pass.saved).y);
      Last::backward(be, p.conv_post, pass.last_weights, pass.last, dlogits, dy, &grad.conv_post);
      learn_layer<maps - 1>(pass, dy, grad);
    }
    template <std::size_t i>
    void learn_layer(const Pass& pass, Planes<T, n> dy, Scale& grad) {
      using L = LayerAt<i>;
      const auto& saved = std::get<i>(pass.saved);
      activate<i>(saved, nullptr, nullptr, dy);
      if constexpr (i == 0) {
        L::backward(be, std::get<i>(p.convs), std::get<i>(pass.weights), saved, dy, {},
                    &std::get<i>(grad.convs));
      } else {
        const auto dx = like(std::get<i - 1>(pass.saved).y);
        L::backward(be, std::get<i>(p.convs), std::get<i>(pass.weights), saved, dy, dx,
                    &std::get<i>(grad.convs));
        learn_layer<i - 1>(pass, dx, grad);
      }
    }

    /// Of the replies alone.
    void fool_by(const Pass& pass, Planes<const T, 1> dlogits, const Sums& sums, std::size_t k,
                 Planes<A, 2> dspectra) {
      const auto scope = be.scope();
      const Index sessions = dlogits.extent(0);
      const auto dy = like(std::get<maps - 1>(pass.saved).part(sessions, sessions).y);
      Last::backward(be, p.conv_post, pass.last_weights, pass.last.part(sessions, sessions), dlogits, dy,
                     nullptr);
      fool_layer<maps - 1>(pass, sessions, dy, sums, k, dspectra);
    }
    template <std::size_t i>
    void fool_layer(const Pass& pass, Index sessions, Planes<T, n> dy, const Sums& sums, std::size_t k,
                    Planes<A, 2> dspectra) {
      using L = LayerAt<i>;
      const auto saved = std::get<i>(pass.saved).part(sessions, sessions);
      activate<i>(saved, std::get<i>(pass.saved).y.data(), &sums.level[k][i], dy);
      const auto& conv = std::get<i>(p.convs);
      if constexpr (i == 0) {
        L::backward(be, conv, std::get<i>(pass.weights), saved, dy, dspectra, nullptr);
      } else {
        const auto dx = like(std::get<i - 1>(pass.saved).part(sessions, sessions).y);
        L::backward(be, conv, std::get<i>(pass.weights), saved, dy, dx, nullptr);
        fool_layer<i - 1>(pass, sessions, dx, sums, k, dspectra);
      }
    }
    Planes<T, n> like(Planes<const T, n> h) {
      return be.template make<T, dyn, dyn, dyn, n>(h.extent(0), h.extent(1), h.extent(2));
    }
  };
};

}  // namespace mttt
