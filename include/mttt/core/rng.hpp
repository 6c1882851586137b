// Philox 4x32-10: a counter-based random generator, the same numbers on every backend and in every order.
//
// Formula: ten rounds of multiply-high/low and key addition over a 128-bit counter and a 64-bit key.
// Shapes:  none.   Units: uniform numbers in (0, 1), normal numbers of variance 1.
// Errors:  none.
// Not supported: cryptography.
// Source:  Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), Philox4x32-10.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "mttt/core/macros.hpp"

namespace mttt {

struct PhiloxBlock {
  std::uint32_t word[4];
};

/// The four words at `counter` of the generator `key`.
MTTT_HD inline PhiloxBlock philox(std::uint64_t key, std::uint64_t counter_low,
                                  std::uint64_t counter_high = 0) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  PhiloxBlock c{{static_cast<std::uint32_t>(counter_low), static_cast<std::uint32_t>(counter_low >> 32),
                 static_cast<std::uint32_t>(counter_high), static_cast<std::uint32_t>(counter_high >> 32)}};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = 0xD2511F53ull * c.word[0], b = 0xCD9E8D57ull * c.word[2];
    c = {{static_cast<std::uint32_t>(b >> 32) ^ c.word[1] ^ k0, static_cast<std::uint32_t>(b),
          static_cast<std::uint32_t>(a >> 32) ^ c.word[3] ^ k1, static_cast<std::uint32_t>(a)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

/// A uniform number strictly between 0 and 1.
MTTT_HD inline double uniform_from(std::uint32_t word) { return (static_cast<double>(word) + 0.5) * 0x1p-32; }

/// A sequential view of one Philox key, for initialisation and data order. Its whole state is two numbers.
class Rng {
 public:
  explicit Rng(std::uint64_t seed, std::uint64_t counter = 0) : seed_(seed), counter_(counter) {}

  std::uint64_t seed() const { return seed_; }
  std::uint64_t counter() const { return counter_; }

  double uniform() { return uniform_from(philox(seed_, counter_++).word[0]); }
  double normal() {  // Box-Muller
    const PhiloxBlock block = philox(seed_, counter_++);
    return std::sqrt(-2.0 * std::log(uniform_from(block.word[0]))) *
           std::cos(6.283185307179586 * uniform_from(block.word[1]));
  }
  /// A normal number of variance 1 cut at +-limit, by rejection.
  double truncated_normal(double limit = 3.0) {
    for (;;) {
      const double z = normal();
      if (std::abs(z) <= limit) return z;
    }
  }
  /// A whole number in [0, n).
  std::uint64_t below(std::uint64_t n) {
    const PhiloxBlock block = philox(seed_, counter_++);
    const std::uint64_t word = block.word[0] | (static_cast<std::uint64_t>(block.word[1]) << 32);
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(word) * n) >> 64);
  }

 private:
  std::uint64_t seed_, counter_;
};

}  // namespace mttt
