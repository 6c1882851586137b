// Holds the fused scans of TTT-Linear to the composed ones of ttt/dual.hpp, evaluated in float64 on what bf16
// holds.
//
// Differences are |found - expected| over |expected| of whole tensors, in the 2-norm: a term that is missing
// shows even where it adds little to the largest element. With u = 2^-9, rounding an operand moves it by u /
// sqrt(3) on average, and so the sums that it enters, relatively; n roundings in a chain move the result by u
// sqrt(n / 3). `chain(n)` allows twice that: the norms and the steps of gradient descent amplify what comes
// in a little, and roundings of earlier mini-batches come with the weights. Roundings on the way to
//   out                 W, Gl (and W before it), P, out                                            5
//   weights, gradients  W, Gl                                                                      2
//   dq                  the forward's 4 in Zbar; dZbar, W, dA, dq                                  8
//   the others          those, and dW', Gl, P, dZ and the result                                  12
#include <map>
#include <string>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/rng.hpp"
#include "mttt/cuda.cuh"
#include "mttt/laws_cuda.cuh"
#include "mttt/ttt/dual.hpp"

namespace mttt::testing {

struct ScanCase {
  Index batch, heads, steps;
};

/// A scan's tensors by name; what goes in, or what comes out.
template <class T>
using Tensors = std::map<std::string, std::vector<T>>;

template <Index F, Index C>
struct FusedScan {
  static constexpr InnerModel model{F, 4 * F, 1};
  static constexpr Index size = model.size();

  struct Inputs {
    Tensors<bf16> rows;  // q, k, target, dout (B, T, H F)
    Tensors<float> numbers;
  };

  static std::vector<float> normal(Index n, double mean, double deviation, Rng& rng) {
    std::vector<float> x(static_cast<std::size_t>(n));
    for (float& e : x) e = static_cast<float>(mean + deviation * rng.normal());
    return x;
  }
  /// Pre-activations of order 1, steps that change the weights much, and some token scales of 0.
  static Inputs inputs(const ScanCase& c, std::uint64_t seed = 1) {
    Rng rng(seed);
    Inputs in;
    const Index tokens = c.batch * c.steps * c.heads, cells = c.batch * c.heads;
    for (const char* name : {"q", "k", "target", "dout"}) {
      const auto x = normal(tokens * F, 0, 1, rng);
      in.rows[name] = std::vector<bf16>(x.begin(), x.end());
    }
    in.numbers["lr"] = normal(tokens, 0, 1, rng);
    for (float& x : in.numbers["lr"]) x = 2 / (1 + std::exp(-x)) / static_cast<float>(F);
    in.numbers["scale"] = normal(C, 0, 0.1, rng);
    for (Index t = 0; t < C; ++t) in.numbers["scale"][t] += 1 / std::sqrt(static_cast<float>(t + 1));
    in.numbers["scale"][3] = in.numbers["scale"][8] = 0;
    in.numbers["gamma"] = normal(c.heads * F, 1, 0.2, rng);
    in.numbers["beta"] = normal(c.heads * F, 0, 0.2, rng);
    in.numbers["weights"] = normal(cells * size, 0, 1 / std::sqrt(static_cast<double>(F)), rng);
    in.numbers["dweights"] = normal(cells * size, 0, 0.5, rng);
    return in;
  }

  /// Both passes on any backend, composed or fused. `run` starts one scan.
  template <class T, class B, class RunForward, class RunBackward>
  static Tensors<double> passes(B& be, const ScanCase& c, const Inputs& in, Index group, RunForward forward,
                                RunBackward backward) {
    using A = Wide<T>;
    const auto scope = be.scope();
    Tensors<T> rows;
    Tensors<A> numbers;
    const Index tokens = c.batch * c.steps * c.heads, cells = c.batch * c.heads;
    for (const auto& [name, x] : in.rows) rows[name] = std::vector<T>(x.begin(), x.end());
    for (const auto& [name, x] : in.numbers) numbers[name] = std::vector<A>(x.begin(), x.end());
    for (const char* name : {"out", "dq", "dk", "dtarget"}) rows[name].assign(tokens * F, T(NAN));
    numbers["dlr"].assign(tokens, NAN);
    numbers["gradients"].assign(cells * size, NAN);
    numbers["dscale"].assign(cells * C, 0);
    for (const char* name : {"dgamma", "dbeta"}) numbers[name].assign(cells * F, 0);
    const Index groups = (c.steps + group * C - 1) / (group * C);
    numbers["checkpoints"].assign(groups * cells * size, NAN);

    std::map<std::string, T*> row;
    std::map<std::string, A*> number;
    const auto send = [&](auto& from, auto& to) {
      for (auto& [name, x] : from) {
        using U = typename std::remove_cvref_t<decltype(x)>::value_type;
        to[name] = be.template make<U, dyn>(static_cast<Index>(x.size())).data();
        be.to_device(x.data(), to[name], static_cast<Index>(x.size()));
      }
    };
    send(rows, row), send(numbers, number);
    const TttScan<T, A> scan{model,
                             c.batch,
                             c.steps,
                             c.heads,
                             C,
                             row["q"],
                             row["k"],
                             row["target"],
                             number["lr"],
                             number["scale"],
                             number["gamma"],
                             number["beta"],
                             number["checkpoints"],
                             A(1e-6),
                             group};
    forward(TttForward<T, A>{scan, number["weights"], number["gradients"], row["out"]});
    backward(TttBackward<T, A>{scan, row["dout"], row["dq"], row["dk"], row["dtarget"], number["dlr"],
                               number["dscale"], number["dgamma"], number["dbeta"], number["dweights"]});
    Tensors<double> found;
    const auto fetch = [&](auto& from, auto& to, std::initializer_list<const char*> names) {
      for (const char* name : names) {
        auto& x = to[name];
        be.to_host(from[name], x.data(), static_cast<Index>(x.size()));
        found[name] = std::vector<double>(x.begin(), x.end());
      }
    };
    fetch(row, rows, {"out", "dq", "dk", "dtarget"});
    fetch(number, numbers, {"weights", "gradients", "dlr", "dscale", "dgamma", "dbeta", "dweights"});
    return found;
  }
  static Tensors<double> composed(const ScanCase& c, const Inputs& in) {
    Cpu<double> be;
    const auto run = [&](const auto& scan) {
      be.rows(c.batch * c.heads, scan, scan.scratch(model, C) * 8, c.steps * size);
    };
    return passes<double>(be, c, in, 1, run, run);
  }
  static Tensors<double> fused(const ScanCase& c, const Inputs& in) {
    static_assert(Cuda<bf16>::fuses_ttt<F, 4 * F, 1, C>);
    Cuda<bf16> be;
    return passes<bf16>(
        be, c, in, 16, [&](const auto& scan) { be.template ttt_forward<F, 4 * F, 1, C>(scan); },
        [&](const auto& scan) { be.template ttt_backward<F, 4 * F, 1, C>(scan); });
  }

  static double chain(int roundings) { return 2 * 0x1p-9 * std::sqrt(roundings / 3.0); }
  static double tolerance(const std::string& name) {
    return chain(name == "out" ? 5 : name == "weights" || name == "gradients" ? 2 : name == "dq" ? 8 : 12);
  }
  static double distance(const std::vector<double>& found, const std::vector<double>& expected) {
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
      difference += (found[i] - expected[i]) * (found[i] - expected[i]);
      norm += expected[i] * expected[i];
    }
    return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
  }

  static void hold_to_composed(const ScanCase& c) {
    CAPTURE(F, C, c.batch, c.heads, c.steps);
    const Inputs in = inputs(c);
    const auto expected = composed(c, in), found = fused(c, in);
    for (const auto& [name, x] : expected) {
      CAPTURE(name);
      const double error = distance(found.at(name), x);
      CHECK(error <= tolerance(name));  // false of NaN
    }
    const auto again = fused(c, in);
    for (const auto& [name, x] : found) {
      CAPTURE(name);
      CHECK((again.at(name) == x));  // in brackets: not to be printed
    }
  }

  /// The first n sessions.
  static Inputs sessions(const ScanCase& c, const Inputs& in, Index n) {
    Inputs part = in;
    const auto cut = [&](auto& x) { x.resize(x.size() / static_cast<std::size_t>(c.batch) * n); };
    for (auto& [name, x] : part.rows) cut(x);
    for (const char* name : {"lr", "weights", "dweights"}) cut(part.numbers[name]);
    return part;
  }
  static void batch_changes_nothing(const ScanCase& c) {
    CAPTURE(F, C, c.batch, c.steps);
    const ScanCase one{1, c.heads, c.steps};
    const Inputs in = inputs(c);
    const auto all = fused(c, in), alone = fused(one, sessions(c, in, 1));
    for (const auto& [name, x] : alone) {
      CAPTURE(name);
      CHECK(std::equal(x.begin(), x.end(), all.at(name).begin()));
    }
  }

  /// More heads than pairs of multiprocessors of any GPU so far: a block each, where few have two.
  static ScanCase many(Index steps) { return {101, 1, steps}; }

  /// Tokens from `first` on are others: what was answered before stays as it was, and the last token does
  /// not.
  static void is_causal() {
    const ScanCase c{1, 2, 2 * C + 5};
    const Inputs in = inputs(c), other = inputs(c, 2);
    const auto before = fused(c, in)["out"];
    for (const Index first : {Index{1}, C / 2 + 3, C - 1, C + 6, 2 * C + 4}) {
      CAPTURE(first);
      Inputs changed = in;
      const auto replace = [&](auto& x, const auto& by, Index width) {
        std::copy(by.begin() + first * width, by.end(), x.begin() + first * width);
      };
      for (auto& [name, x] : changed.rows) replace(x, other.rows.at(name), c.heads * F);
      replace(changed.numbers["lr"], other.numbers.at("lr"), c.heads);
      const auto after = fused(c, changed)["out"];
      const auto until = static_cast<std::ptrdiff_t>(first * c.heads * F);
      CHECK(std::equal(before.begin(), before.begin() + until, after.begin()));
      CHECK_FALSE(std::equal(before.begin() + until, before.end(), after.begin() + until));
    }
  }

  /// Segments that hand the weights on, and their gradients back, are as the whole.
  static void segments_are_the_whole() {
    const ScanCase whole{1, 2, 19 * C + 3}, head{1, 2, 3 * C}, tail{1, 2, 16 * C + 3};
    const Inputs in = inputs(whole);
    const auto expected = fused(whole, in);
    const auto part = [&](Index first, Index steps) {
      Inputs piece = in;
      const auto cut = [&](auto& x, Index width) {
        x = std::remove_cvref_t<decltype(x)>(x.begin() + first * width, x.begin() + (first + steps) * width);
      };
      for (auto& [name, x] : piece.rows) cut(x, whole.heads * F);
      cut(piece.numbers["lr"], whole.heads);
      return piece;
    };
    const auto narrow = [](const std::vector<double>& x) { return std::vector<float>(x.begin(), x.end()); };
    Inputs first = part(0, head.steps), second = part(head.steps, tail.steps);
    second.numbers["weights"] = narrow(fused(head, first)["weights"]);
    const auto of_second = fused(tail, second);
    first.numbers["dweights"] = narrow(of_second.at("dweights"));
    const auto of_first = fused(head, first);
    for (const char* name : {"out", "dq", "dk", "dtarget", "dlr"}) {
      CAPTURE(name);
      auto joined = of_first.at(name);
      joined.insert(joined.end(), of_second.at(name).begin(), of_second.at(name).end());
      CHECK((joined == expected.at(name)));
    }
    CHECK((of_first.at("dweights") == expected.at("dweights")));
    CHECK((of_second.at("weights") == expected.at("weights")));
  }

  static void hold_to_all() {
    hold_to_composed({2, 2, 16 * C + 37});  // two groups
    hold_to_composed({1, 1, C / 2 + 1});
    hold_to_composed({1, 2, 2 * C});
    batch_changes_nothing({3, 2, 2 * C + 5});
    batch_changes_nothing(many(17 * C + 5));
    is_causal();
    segments_are_the_whole();
  }
};

}  // namespace mttt::testing
