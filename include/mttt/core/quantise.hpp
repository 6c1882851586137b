// quantise: trained weights into 16, 8 or 4 bits.
//
//   Store<Moshi<C, Cpu<float>>::Params, Cpu<float>> trained(host);
//   Store<Moshi<C, WithWeights<Int4, Cpu<float>>>::Params, Cpu<float>> small(host);
//   quantise(trained, small);                                              // upload(be, small, on_the_card)
//
// Formula: each weight to the nearest that its format holds (core/quantised.hpp); all other parameters are
//          copied, into another storage type if need be.
// Shapes:  both of one block, the first on a plain backend, the second WithWeights. Both in host memory.
// Units:   none.
// Errors:  NaN and infinity in a weight, with its name and place; one that f16 does not hold; `to` is then
//          half written.
// Not supported: rounding that looks at activations (GPTQ, AWQ).
// Source:  none.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "mttt/core/quantised.hpp"
#include "mttt/core/store.hpp"

namespace mttt {

/// A plane of weights; `name` is for the message. `parallel`: by all threads that OpenMP offers.
template <class Format, class T>
void quantise_rows(std::string_view name, const T* weights, Index out, Index in,
                   typename Format::Value* values, typename Format::Scale* scales,
                   [[maybe_unused]] bool parallel = true) {
  std::atomic<Index> bad{out};
#pragma omp parallel if (parallel)
  {
    std::vector<float> row(static_cast<std::size_t>(in));
#pragma omp for
    for (Index r = 0; r < out; ++r) {
      std::transform(weights + r * in, weights + (r + 1) * in, row.begin(),
                     [](T w) { return static_cast<float>(w); });
      if (std::all_of(row.begin(), row.end(), [](float w) { return std::isfinite(w); })) {
        Format::quantise(row.data(), in, values + r * Format::values(in), scales + r * Format::scales(in));
      } else {
        for (Index first = bad; r < first && !bad.compare_exchange_weak(first, r);) continue;
      }
    }
  }
  if (bad == out) return;
  const T* row = weights + bad * in;
  const T* found = std::find_if(row, row + in, [](T w) { return !std::isfinite(static_cast<float>(w)); });
  fail("weight '" + std::string(name) + "' to quantise",
       std::to_string(static_cast<float>(*found)) + " at row " + std::to_string(bad) + ", column " +
           std::to_string(found - row),
       "finite numbers that a float holds", "quantise a checkpoint from before training went wrong");
}

namespace detail {
/// A weight that f16 does not hold.
inline void require_finite(std::string_view name, double number, float held) {
  if (std::isfinite(held)) return;
  fail("weight '" + std::string(name) + "' to store in f16", std::to_string(number),
       "numbers of less than 65520", "store it in bf16 or float32");
}
}  // namespace detail

template <class P, class A, class Q, class B>
void quantise(const Store<P, A>& from, Store<Q, B>& to) {
  static_assert(std::is_same_v<typename A::Memory, typename B::Memory>,
                "mttt: quantise works in host memory");
  for_each_parameter(
      [](std::string_view name, auto& target, const auto& source) {
        using Target = std::remove_cvref_t<decltype(target)>;
        if constexpr (is_quantised<Target>) {
          using Format = typename Target::Format;
          quantise_rows<Format>(name, source.data(), Target::out, Target::in, target.values.data(),
                                target.scales.data());
        } else {
          using T = typename Target::value_type;
          for (Index i = 0; i < source.size(); ++i) {
            const auto number = wide(source.data()[i]);
            target.data()[i] = static_cast<T>(number);
            if constexpr (std::is_same_v<T, f16>) detail::require_finite(name, number, target.data()[i]);
          }
        }
      },
      *to, *from);
}

}  // namespace mttt
